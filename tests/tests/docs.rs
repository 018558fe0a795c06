//! Executes the commands of README.md and docs/, each page in a mount namespace with a daemon of its own.
//!
//! A page's `console` blocks are one shell session. Lines that begin with `$ ` are commands; the lines below
//! are their output, where `...` matches any number of lines and words with digits match each other. A
//! comment `# exits with N` promises another exit status than 0. Blocks of `console,host` (systemd, root or
//! hardware) and `console,account` (a cloud account) are not executed; their `blockctl` commands run without
//! a daemon, which shows that the command line is valid; so do those of `console,fuse` where /dev/fuse cannot
//! be opened. `<!-- test … -->` contains the setup of a page; `<!-- test root PROGRAM …` marks a page that
//! needs root, loop devices and these programs.

use crate::harness::{
    files_below,
    process::{both, die_with_parent, program, repository, tool},
    replay::filesystem::{self, Filesystem},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Exit status of `blockctl` for an invalid command line.
const USAGE: i32 = 2;

/// Prepares the directories that the pages name, starts the daemon, and defines how a page stops it.
const PRELUDE: &str = r#"
set -u
home=$PWD
mount -t tmpfs tmpfs /srv
mount -t tmpfs tmpfs /var/lib
cp -a /etc "$home/etc" 2>"$home/copy-errors" || true
mount --bind "$home/etc" /etc
mkdir -p /etc/blockd /var/lib/blockd
printf 'verify_bytes_per_day = 0\nscrub_bytes_per_day = 0\n' >/etc/blockd/blockd.toml
mkdir work && cd work
export BLOCKD_SOCKET=/var/lib/blockd/blockd.sock
blockd >"$home/daemon.log" 2>&1 &
daemon=$!
trap 'kill $daemon; wait $daemon' EXIT
until blockctl status >/dev/null 2>&1; do
    # A daemon that hangs fails the page after two minutes.
    kill -0 $daemon && [ $SECONDS -lt 120 ] || { cat "$home/daemon.log"; exit 1; }
    sleep 0.02
done
"#;

/// A command of a page and the output that the page shows.
struct Step {
    line: usize,
    command: String,
    expected: Vec<String>,
    /// Setup from a comment, which ends at its first failing command.
    is_setup: bool,
    runs: bool,
}

impl Step {
    /// Compares an exit status with the promised one; a command that is only parsed must not be rejected as
    /// invalid.
    fn may_exit_with(&self, status: i32) -> bool {
        let promised =
            self.command.rsplit_once("# exits with ").map_or(0, |(_, status)| status.trim().parse().unwrap());
        if self.runs { status == promised } else { status != USAGE }
    }
}

/// Reads the commands of a page. Of blocks that are not executed, only `blockctl` commands are kept.
fn steps_of(page: &str) -> Vec<Step> {
    let has_fuse = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    let fuse = if has_fuse { "console" } else { "console,host" };
    let mut steps: Vec<Step> = Vec::new();
    let mut block: Option<&str> = None;
    for (index, text) in page.lines().enumerate() {
        let line = index + 1;
        match (block, text) {
            (None, opening) if opening.starts_with("<!-- test") => block = Some("test"),
            (Some("test"), "-->") | (Some(_), "```") => block = None,
            (None, "```console,fuse") => block = Some(fuse),
            (None, opening) => block = opening.strip_prefix("```").filter(|info| !info.is_empty()),
            (Some("test"), command) => match steps.last_mut() {
                // One script, as it may contain here-documents.
                Some(step) if step.is_setup && step.line + step.command.lines().count() == line => {
                    step.command = format!("{}\n{command}", step.command);
                }
                _ => steps.push(Step {
                    line,
                    command: command.into(),
                    expected: vec!["...".into()],
                    is_setup: true,
                    runs: true,
                }),
            },
            (Some("console"), text) => match (text.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => {
                    steps.push(Step {
                        line,
                        command: command.into(),
                        expected: Vec::new(),
                        is_setup: false,
                        runs: true,
                    });
                }
                (None, Some(step)) => step.expected.push(text.into()),
                (None, None) => panic!("line {line}: output without a command"),
            },
            (Some("console,host" | "console,account"), text) => {
                let command = text.strip_prefix("$ ").or_else(|| text.strip_prefix("# "));
                if let Some(command) = command.filter(|command| command.contains("blockctl ")) {
                    steps.push(Step {
                        line,
                        command: command.into(),
                        expected: vec!["...".into()],
                        is_setup: false,
                        runs: false,
                    });
                }
            }
            (Some(_), _) => {}
        }
    }
    steps
}

/// Writes the session of a page: each command in the same shell, its output and status in files of its own.
fn script_of(steps: &[Step]) -> String {
    let mut script = PRELUDE.to_owned();
    for (index, step) in steps.iter().enumerate() {
        let command = &step.command;
        let (before, after) = match step.runs {
            true if step.is_setup => ("{ set -e", "set +e\n}"),
            true => ("{", "}"),
            false => ("( BLOCKD_SOCKET=/nonexistent/blockd.sock", ")"),
        };
        script += &format!(
            "{before}\n{command}\n{after} >\"$home/out-{index}\" 2>&1 </dev/null; echo $? >\"$home/status-{index}\"\n"
        );
    }
    script
}

/// Reduces a line to the words that are the same in each run.
fn stable_words(line: &str) -> Vec<&str> {
    const UNITS_AND_NAMES: &[&str] = &[
        "B", "KiB", "MiB", "GiB", "TiB", "µs", "ms", "s", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun",
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let is_stable = |word: &&str| !word.contains(|c: char| c.is_ascii_digit());
    line.split_whitespace()
        .filter(is_stable)
        .map(|word| word.trim_matches(['(', ')', ',']))
        .filter(|word| !UNITS_AND_NAMES.contains(word) && !word.is_empty())
        .collect()
}

/// Compares output with that of the page.
fn matches(expected: &[String], actual: &[&str]) -> bool {
    match (expected.split_first(), actual.split_first()) {
        (None, None) => true,
        (Some((wildcard, rest)), _) if wildcard == "..." => {
            (0..=actual.len()).any(|skipped| matches(rest, &actual[skipped..]))
        }
        (Some((first, rest)), Some((line, others))) => {
            stable_words(first) == stable_words(line) && matches(rest, others)
        }
        _ => false,
    }
}

/// Returns what this machine lacks for a page that is run by root.
fn missing(programs: &str) -> Option<String> {
    let dirs = ["/usr/lib/postgresql/15/bin", "/usr/local/bin", "/usr/bin"].map(Path::new);
    let is_missing = |name: &&str| !dirs.iter().any(|dir| dir.join(name).is_file());
    filesystem::missing(Filesystem::Ext4)
        .or_else(|| programs.split_whitespace().find(is_missing).map(|name| format!("the program {name}")))
}

/// Executes a page; returns how many commands ran and how many were only parsed, or the first difference.
fn execute(page: &Path) -> Result<(usize, usize), String> {
    let text = fs::read_to_string(page).unwrap();
    let mut steps = steps_of(&text);
    if steps.is_empty() {
        return Ok((0, 0));
    }
    let programs = text.lines().find_map(|line| line.strip_prefix("<!-- test root"));
    let lacks = programs.and_then(missing);
    if let Some(what) = &lacks {
        println!("{}: only parsed, because this machine lacks {what}", page.display());
        steps.retain(|step| !step.is_setup && step.command.contains("blockctl "));
        steps.iter_mut().for_each(|step| step.runs = false);
    }
    let namespaces: &[&str] = match programs.is_some() && lacks.is_none() {
        // Its background processes and loop devices end with the namespace.
        true => &["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"],
        false => &["--user", "--map-root-user", "--mount"],
    };
    let home = tempfile::tempdir().unwrap();
    let script = home.path().join("session");
    fs::write(&script, script_of(&steps)).unwrap();
    let programs = program("blockctl").parent().unwrap().to_owned();
    let path = format!("{}:{}:/usr/sbin:/sbin", programs.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(tool("unshare"));
    command.args(namespaces).arg("bash").arg(&script).current_dir(home.path());
    command
        .env_clear()
        .env("PATH", path)
        .env("HOME", home.path())
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::null());
    let session = die_with_parent(&mut command).output().unwrap();
    for (index, step) in steps.iter().enumerate() {
        let read = |kind: &str| fs::read_to_string(home.path().join(format!("{kind}-{index}"))).ok();
        let Some(status) = read("status") else {
            // Setup that failed ended the session.
            let output = read("out").unwrap_or_default();
            return Err(format!("line {}: not reached\n{output}{}", step.line, both(&session)));
        };
        let output = read("out").unwrap_or_default();
        let status: i32 = status.trim().parse().unwrap();
        if !step.may_exit_with(status) {
            let command = &step.command;
            return Err(format!("line {}: exit status {status} of: {command}\n{output}", step.line));
        }
        if step.runs && !matches(&step.expected, &output.lines().collect::<Vec<_>>()) {
            return Err(format!("line {}: other output of: {}\n{output}", step.line, step.command));
        }
    }
    let ran = steps.iter().filter(|step| step.runs).count();
    Ok((ran, steps.len() - ran))
}

fn pages() -> Vec<PathBuf> {
    let docs = fs::read_dir(repository().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut pages: Vec<PathBuf> =
        docs.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    pages.sort();
    pages.insert(0, repository().join("README.md"));
    pages
}

#[test]
fn documented_commands_print_the_documented_output() {
    let mut failures = Vec::new();
    for page in pages() {
        match execute(&page) {
            Ok((ran, parsed)) => println!("{}: {ran} commands ran, {parsed} were parsed", page.display()),
            Err(failure) => failures.push(format!("{}: {failure}", page.display())),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn links_between_pages_lead_to_files_and_headings() {
    let link = regex::Regex::new(r"\]\(([^)#]*)(?:#([^)]*))?\)").unwrap();
    let folders = ["blockd", "docs", "examples", "kernel-notes", "tools"];
    let files = folders.iter().flat_map(|folder| files_below(&repository().join(folder)));
    let other = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| repository().join(name));
    for page in files.chain(other).filter(|path| path.extension().is_some_and(|end| end == "md")) {
        for found in link.captures_iter(&fs::read_to_string(&page).unwrap()) {
            if found[1].contains("://") {
                continue;
            }
            let target =
                if found[1].is_empty() { page.clone() } else { page.parent().unwrap().join(&found[1]) };
            assert!(target.exists(), "{}: link to {}", page.display(), &found[1]);
            if let Some(anchor) = found.get(2) {
                let text = fs::read_to_string(&target).unwrap();
                let is_heading = text.lines().filter(|line| line.starts_with('#')).any(|line| {
                    let words = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
                    words.replace(|c: char| !c.is_alphanumeric() && c != '-' && c != '_', "")
                        == anchor.as_str()
                });
                assert!(is_heading, "{}: link to {}", page.display(), &found[0]);
            }
        }
    }
}
