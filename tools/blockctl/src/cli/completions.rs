//! `blockctl completions` and `blockctl man`

use clap::Args;
use clap_complete::Shell;
use std::path::PathBuf;

/// Help of `completions`.
pub const COMPLETIONS_HELP: &str = "\
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
