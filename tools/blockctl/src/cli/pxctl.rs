//! Test of the `pxctl` page: the parser accepts each command of its second column.

use super::tests::parse;

#[test]
fn pxctl_page_commands_are_parsed() {
    let table = include_str!("../../PXCTL.md").lines().filter(|line| line.starts_with("| "));
    let ours: Vec<&str> = table
        .filter_map(|row| row.split('|').nth(2)?.trim().strip_prefix("`blockctl ")?.strip_suffix('`'))
        .collect();
    assert!(ours.len() > 15, "{ours:?}");
    for line in ours {
        if let Err(error) = parse(line) {
            panic!("blockctl {line}: {error}");
        }
    }
}
