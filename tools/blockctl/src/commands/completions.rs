//! `blockctl completions` and `blockctl man`

use crate::{
    failure::{Exit, Failure},
    output::Output,
    table::printable,
};
use blockd_api::List;
use clap::{Args, Command};
use clap_complete::{Shell, env::Shells};
use clap_mangen::Man;
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Environment variable that asks for completions.
pub const VARIABLE: &str = "BLOCKCTL_COMPLETE";

/// Help of `completions`.
pub const COMPLETIONS_HELP: &str = "\
The script runs blockctl for each completion, which asks the daemon for names of volumes, snapshots, \
backups, credentials, schedules, policies, rules and tasks.

Examples:
  blockctl completions bash > ~/.local/share/bash-completion/completions/blockctl
  blockctl completions zsh > ~/.zfunc/_blockctl
  blockctl completions fish > ~/.config/fish/completions/blockctl.fish";

/// Help of `man`.
pub const MAN_HELP: &str = "\
Examples:
  blockctl man | man -l -
  blockctl man --dir ~/.local/share/man/man1";

/// `completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Shell
    pub shell: Shell,
}

/// `man`
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Directory for the pages of all commands
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

pub fn completions(output: &Output, args: &CompletionsArgs) -> Exit {
    let (shells, name) = (Shells::builtins(), args.shell.to_string());
    let shell =
        shells.completer(&name).ok_or_else(|| Failure::usage(format!("there is no script for {name}")))?;
    let mut script = Vec::new();
    let written = shell.write_registration(VARIABLE, "blockctl", "blockctl", "blockctl", &mut script);
    written.map_err(Failure::stdout)?;
    let script = String::from_utf8_lossy(&script);
    output.text(&json!({ "shell": args.shell.to_string(), "script": script }), || script.to_string())
}

/// Runs `man`; `root` is the parser of all commands.
pub fn man(output: &Output, args: &ManArgs, root: Command) -> Exit {
    if let Some(dir) = &args.dir {
        fs::create_dir_all(dir).map_err(|source| Failure::write(dir, source))?;
        let mut command = root.disable_help_subcommand(true);
        command.build();
        let mut pages = Vec::new();
        write_pages(command, dir, &mut pages)?;
        let lines = || pages.iter().map(|page| printable(page) + "\n").collect();
        return output.text(&List::from(pages.clone()), lines);
    }
    let mut page = Vec::new();
    Man::new(root).render(&mut page).map_err(Failure::stdout)?;
    let page = String::from_utf8_lossy(&page);
    output.text(&json!({ "page": page }), || page.to_string())
}

/// Writes the pages of a command and its subcommands.
fn write_pages(command: Command, dir: &Path, pages: &mut Vec<String>) -> Result<(), Failure> {
    let below: Vec<_> = command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned().collect();
    let page = Man::new(command);
    let failed = |source| Failure::write(&dir.join(page.get_filename()), source);
    let path = page.generate_to(dir).map_err(failed)?;
    pages.push(path.display().to_string());
    below.into_iter().try_for_each(|sub| write_pages(sub, dir, pages))
}
