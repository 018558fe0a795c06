//! What packages bring beside the program, made from its command line: the manual page and completions.

use crate::cli::Cli;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use std::io::{self, Write};

/// What can be made.
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
}

impl Generate {
    /// Writes it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(self, to: &mut impl Write) -> io::Result<()> {
        let shell = match self {
            Self::Man => return Man::new(Cli::command()).section("8").render(to),
            Self::Bash => Shell::Bash,
            Self::Zsh => Shell::Zsh,
            Self::Fish => Shell::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "blockd", &mut script);
        to.write_all(&script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_tells_of_the_options_and_nothing_of_the_hidden_ones() {
        for what in <Generate as clap::ValueEnum>::value_variants() {
            let mut made = Vec::new();
            what.write(&mut made).unwrap();
            let text = String::from_utf8(made).unwrap().replace('\\', "");
            for option in ["data-dir", "config", "nbd-listen", "check-volumes", "after-power-loss"] {
                assert!(text.contains(option), "{what:?} does not tell of {option}");
            }
            if *what == Generate::Man {
                assert!(text.contains(".TH blockd 8") && text.contains("full_every"), "{text}");
                assert!(!text.contains("hold-filesystem") && !text.contains("--generate"), "{text}");
            }
        }
    }
}
