//! The README shows the example program.

#[test]
fn readme_contains_the_example_program() {
    let (_title, program) = include_str!("../examples/image_files.rs").split_once("\n\n").unwrap_or_default();
    assert!(!program.is_empty() && include_str!("../README.md").contains(program));
}
