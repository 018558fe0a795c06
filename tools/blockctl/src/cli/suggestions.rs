//! Familiar names of commands, and corrections of mistyped ones.

use clap::error::{ContextKind, ContextValue};

/// Minimum length of a proposed name: shorter ones are aliases, which resemble any word.
const MIN_CHARS: usize = 3;

/// Adds the names of other tools to a command and its subcommands: `ls`, `rm` and `show`.
pub fn with_familiar_names(command: clap::Command) -> clap::Command {
    let alias = match command.get_name() {
        "list" => Some("ls"),
        "delete" => Some("rm"),
        "inspect" | "describe" => Some("show"),
        _ => None,
    };
    let command = match alias {
        Some(alias) => command.alias(alias),
        None => command,
    };
    command.mut_subcommands(with_familiar_names)
}

/// Removes proposals that do not help: aliases of one or two letters, and options passed as values.
pub fn improve(mut error: clap::Error) -> clap::Error {
    error.remove(ContextKind::Suggested);
    if let Some(ContextValue::Strings(names)) = error.get(ContextKind::SuggestedSubcommand) {
        let names: Vec<String> = names.iter().filter(|name| name.len() >= MIN_CHARS).cloned().collect();
        error.remove(ContextKind::SuggestedSubcommand);
        if !names.is_empty() {
            error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(names));
        }
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> String {
        let words = std::iter::once("blockctl").chain(line.split_whitespace());
        improve(crate::cli::command().try_get_matches_from(words).unwrap_err()).to_string()
    }

    #[test]
    fn familiar_names_are_aliases() {
        for line in
            ["volume ls", "cloudsnap rm ID123456", "snapshot show a@b", "credentials ls", "show Rule x"]
        {
            let words = std::iter::once("blockctl").chain(line.split_whitespace());
            assert!(crate::cli::command().try_get_matches_from(words).is_ok(), "{line}");
        }
    }

    #[test]
    fn proposals_are_whole_words() {
        assert!(error("volume creat db").contains("'create'"));
        for line in ["volume snapshot", "version", "cloudsnap cancel"] {
            let told = error(line);
            assert!(!told.contains("'a'") && !told.contains("'v'") && !told.contains("'l'"), "{told}");
        }
        assert!(!error("cloudsnap backup db --names x").contains("to pass"));
    }
}
