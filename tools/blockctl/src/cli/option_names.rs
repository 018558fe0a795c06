//! Options in place of positional arguments: `volume inspect --volume db` is `volume inspect db`.
//!
//! An argument is declared once, as a positional. If the command line has it as an option, the command is
//! parsed with the argument as one.

use clap::{Arg, ArgAction, ArgMatches, Command, Id, builder::OsStringValueParser};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
};

/// Value names of positional arguments, the long names of their options, and the short ones. Help shows the
/// first of each; the others are familiar from `pxctl` or from other commands.
const NAMES: [(&[&str], &[&str], &[char]); 21] = [
    (&["VOLUME", "VOLUME[@SNAPSHOT]"], &["volume", "name"], &['v']),
    (&["VOLUME,…"], &["volumes"], &['v']),
    (&["VOLUME|GROUP"], &["volume", "target"], &['v']),
    (&["ANOMALY|VOLUME"], &["anomaly", "volume"], &['v']),
    (&["GROUP"], &["group"], &['g']),
    (&["DATE"], &["at"], &[]),
    (&["VOLUME|DEVICE"], &["volume", "device", "name"], &['v']),
    (&["SNAPSHOT"], &["snapshot", "from", "name"], &['s']),
    (&["ID", "ID|VOLUME"], &["snap", "cloudsnap-id"], &['s', 'i']),
    (&["A", "ID-1"], &["from"], &[]),
    (&["B", "ID-2"], &["to"], &[]),
    (&["TASK"], &["name", "task"], &['n']),
    (&["SCHEDULE"], &["schedule", "uuid", "name"], &['u']),
    (&["CREDENTIAL", "CREDENTIALS"], &["cred-id", "cr", "uuid", "name"], &[]),
    (&["POLICY"], &["policy", "name"], &[]),
    (&["RULE"], &["rule", "name"], &[]),
    (&["KIND", "KIND,…"], &["kind"], &[]),
    (&["NAME"], &["name"], &[]),
    (&["DIR"], &["dir"], &[]),
    (&["TO"], &["to"], &[]),
    (&["SHELL"], &["shell"], &[]),
];

/// Names of the option that a positional argument of a command can be.
struct OptionNames {
    /// Id of the option beside the argument: the value name. Those of arguments are in lower case.
    id: &'static str,
    longs: Vec<&'static str>,
    shorts: Vec<char>,
}

impl OptionNames {
    /// Adds the names to an argument. A list takes one value for each option.
    fn add_to(&self, arg: Arg) -> Arg {
        arg.num_args(1)
            .long(self.longs.first().copied())
            .aliases(self.longs.iter().skip(1))
            .short(self.shorts.first().copied())
            .short_aliases(self.shorts.iter().skip(1).copied())
    }

    /// Returns the names as help shows them.
    fn shown(&self) -> String {
        let short = self.shorts.first().map(|short| format!("-{short}"));
        let long = self.longs.first().map(|long| format!("--{long}"));
        short.into_iter().chain(long).collect::<Vec<_>>().join(", ")
    }
}

/// Returns the option names of the positional arguments of a command, without names that it has already.
fn options_of(command: &Command) -> BTreeMap<Id, OptionNames> {
    let known: Vec<_> = command
        .get_positionals()
        .filter_map(|arg| {
            let value = arg.get_value_names()?.first()?;
            NAMES.iter().find_map(|(values, longs, shorts)| {
                let name = values.iter().find(|name| **name == value.as_str())?;
                Some((arg.get_id(), *name, *longs, *shorts))
            })
        })
        .collect();
    let mut long_owners: BTreeMap<&str, &Id> = BTreeMap::new();
    let mut short_owners: BTreeMap<char, &Id> = BTreeMap::new();
    for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
        let longs = arg.get_long().into_iter().chain(arg.get_all_aliases().into_iter().flatten());
        long_owners.extend(longs.map(|long| (long, arg.get_id())));
        let shorts = arg.get_short().into_iter().chain(arg.get_all_short_aliases().into_iter().flatten());
        short_owners.extend(shorts.map(|short| (short, arg.get_id())));
    }
    // The name after the value takes precedence over a further name of another argument.
    let most = known.iter().map(|(.., longs, _)| longs.len()).max().unwrap_or(0);
    for nth in 0..most {
        for (id, _, longs, shorts) in &known {
            if let Some(long) = longs.get(nth) {
                long_owners.entry(long).or_insert(id);
            }
            if let Some(short) = shorts.get(nth) {
                short_owners.entry(*short).or_insert(id);
            }
        }
    }
    let of = |(id, name, longs, shorts): (&Id, &'static str, &'static [&'static str], &'static [char])| {
        let longs = longs.iter().copied().filter(|long| long_owners.get(long) == Some(&id)).collect();
        let shorts = shorts.iter().copied().filter(|short| short_owners.get(short) == Some(&id)).collect();
        (id.clone(), OptionNames { id: name, longs, shorts })
    };
    known.into_iter().map(of).filter(|(_, names)| !names.longs.is_empty()).collect()
}

/// Adds the option names of positional arguments to their help, in all subcommands.
pub fn with_help(command: Command) -> Command {
    let options = options_of(&command);
    let command = command.mut_args(|arg| match options.get(arg.get_id()) {
        Some(names) => {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            arg.help(format!("{help} [option: {}]", names.shown()))
        }
        None => arg,
    });
    command.mut_subcommands(with_help)
}

/// Adds options beside the positional arguments, in all subcommands.
pub fn with_options(command: Command) -> Command {
    let options = options_of(&command);
    let added: Vec<Arg> = command
        .get_positionals()
        .filter_map(|arg| {
            let names = options.get(arg.get_id())?;
            let option = Arg::new(names.id).value_name(names.id).action(ArgAction::Append).hide(true);
            Some(names.add_to(option))
        })
        .collect();
    command.args(added).mut_subcommands(with_options)
}

/// Accepts any value of the arguments, in all subcommands.
fn with_any_values(command: Command) -> Command {
    let command = command.mut_args(|arg| match arg.get_action().takes_values() {
        true => arg.value_parser(OsStringValueParser::new()),
        false => arg,
    });
    command.mut_subcommands(with_any_values)
}

/// Makes options of the positional arguments that a command line names as options, and returns the names of
/// these options too.
pub fn as_given(command: Command, args: &[OsString]) -> (Command, Vec<&'static str>) {
    let probe = with_any_values(with_options(command.clone())).ignore_errors(true);
    let mut names = Vec::new();
    let command = match probe.try_get_matches_from(args) {
        Ok(matches) => as_matched(command, &matches, &mut names),
        // Help and version.
        Err(_) => command,
    };
    (command, names)
}

fn as_matched(command: Command, matches: &ArgMatches, names: &mut Vec<&'static str>) -> Command {
    let mut options = options_of(&command);
    let given: BTreeSet<&str> = matches.ids().map(Id::as_str).collect();
    options.retain(|_, names| given.contains(names.id));
    names.extend(options.values().filter_map(|names| names.longs.first()));
    let command = command.mut_args(|arg| match options.get(arg.get_id()) {
        Some(names) => names.add_to(arg),
        None => arg,
    });
    match matches.subcommand() {
        Some((name, below)) => command.mut_subcommand(name, |sub| as_matched(sub, below, names)),
        None => command,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::parse;

    fn parsed(line: &str) -> String {
        match parse(line) {
            Ok(cli) => format!("{:?}", cli.command),
            Err(error) => panic!("{line}: {error}"),
        }
    }

    #[test]
    fn options_have_the_meaning_of_arguments() {
        for (option, argument) in [
            ("volume inspect --volume db", "volume inspect db"),
            ("volume inspect --name=db", "volume inspect db"),
            ("volume create --size 8GiB --name db", "volume create db --size 8GiB"),
            ("volume rename --volume db new", "volume rename db new"),
            ("volume rename db --name new", "volume rename db new"),
            ("volume clone db@latest --name new", "volume clone new db@latest"),
            ("volume clone new --from db@latest", "volume clone new db@latest"),
            ("volume detach --device /dev/nbd7", "volume detach /dev/nbd7"),
            ("snapshot create --name monday -v db", "snapshot create db --name monday"),
            ("snapshot list -jv db", "snapshot list db"),
            ("snapshot restore db --snapshot monday", "snapshot restore db monday"),
            ("snapshot diff db --from a --to b", "snapshot diff db a b"),
            ("credentials validate --cred-id nas", "credentials validate nas"),
            ("credentials delete --uuid nas", "credentials delete nas"),
            ("rule create --name pg --freeze-fs", "rule create pg --freeze-fs"),
            ("rule assign --rule pg --volume db", "rule assign pg --volume db"),
            ("sched-policy delete --name gold", "sched-policy delete gold"),
            ("rule assign pg --target db", "rule assign pg db"),
            ("snapshot create-group --volumes a,b", "snapshot create-group a b"),
            ("snapshot create-group -v a -v b", "snapshot create-group a,b"),
            ("cs backup-group -g shop", "cs backup-group shop"),
            ("cs expire db@latest --at 2027-01-31", "cs expire db@latest 2027-01-31"),
            ("cs sched create --target db --daily 21:00", "cs sched create db --daily 21:00"),
            ("cs backup -fv db", "cs backup db -f"),
            ("cs restore -s db --latest", "cs restore db --latest"),
            ("cs resume --name 3f4f", "cs resume 3f4f"),
            ("cs list --volume db", "cs list --src db"),
            ("cs history --volume db", "cs history --src db"),
            ("cs sched delete --uuid nightly", "cs sched delete nightly"),
            ("context delete --name vault", "context delete vault"),
            ("get --name a --name b vb", "get vb a b"),
        ] {
            assert_eq!(parsed(option), parsed(argument), "{option}");
        }
    }

    #[test]
    fn values_of_other_options_are_no_options() {
        let line = "rule create pg --pre-command=--rule";
        assert!(parsed(line).contains("--rule"));
        for line in ["volume inspect -- --volume", "volume inspect db --volume"] {
            assert!(parse(line).is_err(), "{line}");
        }
        let error = parse("volume inspect a --name b").unwrap_err().to_string();
        assert!(error.contains("'a'") && error.contains("--volume is given as well"), "{error}");
    }

    #[test]
    fn positional_arguments_have_options() {
        fn walk(command: &Command, path: &str, without: &mut Vec<String>) {
            let path = format!("{path} {}", command.get_name());
            let options = options_of(command);
            let lacking = command.get_positionals().filter(|arg| !options.contains_key(arg.get_id()));
            without.extend(lacking.map(|arg| format!("{path} {}", arg.get_id())));
            command.get_subcommands().for_each(|sub| walk(sub, &path, without));
        }
        let mut without = Vec::new();
        with_options(crate::cli::command()).debug_assert();
        walk(&crate::cli::command(), "", &mut without);
        // The option of `list` is --src. `cat` and `cp` take an id and paths, `schema` and `secrets` words of
        // other commands.
        let expected = [
            "cloudsnap list volume",
            "cloudsnap cat paths",
            "cloudsnap cp paths",
            "secrets store",
            "secrets command",
            "schema command",
        ];
        assert_eq!(without, expected.map(|path| format!(" blockctl {path}")));
    }
}
