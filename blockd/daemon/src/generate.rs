//! Generated files of the packages: the manual page, completions, and the OpenAPI document.

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use std::io::{self, Write};

/// A generated file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Generate {
    /// The manual page.
    Man,
    /// Completions for bash.
    Bash,
    /// Completions for zsh.
    Zsh,
    /// Completions for fish.
    Fish,
    /// The OpenAPI document of the control API.
    #[value(name = "openapi")]
    OpenApi,
}

impl Generate {
    /// Writes the file for a command line.
    ///
    /// # Errors
    /// `to` cannot be written to.
    pub fn write(self, mut command: Command, to: &mut impl Write) -> io::Result<()> {
        let shell = match self {
            Self::Man => return Man::new(command).section("8").render(to),
            Self::Bash => Shell::Bash,
            Self::Zsh => Shell::Zsh,
            Self::Fish => Shell::Fish,
            Self::OpenApi => return to.write_all(blockd_api::openapi::document_text().as_bytes()),
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, "blockd", &mut script);
        to.write_all(&script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn man_page_and_completions_list_all_public_options() {
        for what in &[Generate::Man, Generate::Bash, Generate::Zsh, Generate::Fish] {
            let mut made = Vec::new();
            what.write(crate::cli::Cli::command(), &mut made).unwrap();
            let text = String::from_utf8(made).unwrap().replace('\\', "");
            for option in ["data-dir", "config", "nbd-listen", "check-volumes", "after-power-loss"] {
                assert!(text.contains(option), "{what:?} lacks {option}");
            }
            if *what == Generate::Man {
                assert!(text.contains(".TH blockd 8") && text.contains("full_every"), "{text}");
                assert!(!text.contains("hold-filesystem") && !text.contains("--generate"), "{text}");
            }
        }
    }
}
