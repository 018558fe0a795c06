//! Rules: what is done around freezes, and which volumes and groups have it.

use super::Fields;
use blockd_api::{
    GroupName, VolumeName,
    quiesce::{DEFAULT_COMMAND_TIMEOUT_S, OnFailure, Quiesce},
    rules::HookRule,
};
use serde_json::{Map, Value, json};
use std::str::FromStr;

/// A rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Hook {
    /// What is done.
    pub quiesce: Quiesce,
    /// The volumes that have it as their own; whichever do, if nothing is said.
    pub volumes: Option<Vec<VolumeName>>,
    /// The groups that have it; likewise.
    pub groups: Option<Vec<GroupName>>,
}

impl Hook {
    /// A rule of the daemon's.
    pub fn of(rule: &HookRule) -> Self {
        let hook = Self {
            quiesce: rule.quiesce.clone(),
            volumes: Some(rule.volumes.clone()),
            groups: Some(rule.groups.clone()),
        };
        hook.in_order()
    }

    fn in_order(mut self) -> Self {
        if let Some(volumes) = &mut self.volumes {
            volumes.sort_unstable();
            volumes.dedup();
        }
        if let Some(groups) = &mut self.groups {
            groups.sort_unstable();
            groups.dedup();
        }
        // What is not said is a minute, as it is when that is said.
        self.quiesce.command_timeout_s.get_or_insert(DEFAULT_COMMAND_TIMEOUT_S);
        self
    }

    /// As it is written.
    pub fn view(&self) -> Value {
        let quiesce = &self.quiesce;
        let mut view = Map::new();
        for (name, text) in [
            ("preCommand", &quiesce.pre_command),
            ("postCommand", &quiesce.post_command),
            ("user", &quiesce.user),
        ] {
            if let Some(text) = text {
                view.insert(name.to_owned(), text.as_str().into());
            }
        }
        view.insert("freezeFs".to_owned(), quiesce.freeze_fs.into());
        let timeout_s = quiesce.command_timeout_s.unwrap_or(DEFAULT_COMMAND_TIMEOUT_S);
        view.insert("timeout".to_owned(), format!("{timeout_s}s").into());
        view.insert("onFailure".to_owned(), quiesce.on_failure.as_str().into());
        if let Some(volumes) = &self.volumes {
            view.insert("volumes".to_owned(), json!(volumes));
        }
        if let Some(groups) = &self.groups {
            view.insert("groups".to_owned(), json!(groups));
        }
        view.into()
    }
}

/// Reads what is below `spec`.
pub fn read(fields: &mut Fields<'_>) -> Option<Hook> {
    if !fields.has("spec") {
        fields.missing("spec");
    }
    let mut spec = fields.fields("spec")?;
    let line = spec.line;
    let has_command = spec.has("preCommand") || spec.has("postCommand");
    let pre_command = checked(&mut spec, "preCommand", |pre_command| Quiesce {
        pre_command: Some(pre_command),
        ..Quiesce::default()
    });
    let post_command = checked(&mut spec, "postCommand", |post_command| Quiesce {
        post_command: Some(post_command),
        ..Quiesce::default()
    });
    let user = checked(&mut spec, "user", |user| Quiesce { user: Some(user), ..Quiesce::default() });
    let timeout_line = spec.peek("timeout").map_or(line, |node| node.line);
    let seconds = spec.text("timeout").map(|text| crate::cli::volume::parse_seconds(&text));
    let command_timeout_s = seconds.and_then(|seconds| {
        let checked = seconds.and_then(|seconds| {
            Quiesce { command_timeout_s: Some(seconds), ..Quiesce::default() }.check().map(|()| seconds)
        });
        checked.map_err(|what| spec.wrong(timeout_line, "timeout", what)).ok()
    });
    let freeze_fs = spec.flag("freezeFs").unwrap_or(false);
    let failure_line = spec.peek("onFailure").map_or(line, |node| node.line);
    let on_failure = match spec.text("onFailure").as_deref() {
        None | Some("abort") => OnFailure::Abort,
        Some("continue") => OnFailure::Continue,
        Some(other) => {
            spec.wrong(failure_line, "onFailure", format!("{other:?} is neither abort nor continue"));
            OnFailure::Abort
        }
    };
    let (volumes, groups) = (names(&mut spec, "volumes"), names(&mut spec, "groups"));
    let quiesce = Quiesce { freeze_fs, pre_command, post_command, command_timeout_s, user, on_failure };
    if !quiesce.freeze_fs && !has_command {
        let what = "a rule needs something to do: give preCommand, postCommand or freezeFs";
        spec.reading.wrong(line, &spec.path, what);
    }
    spec.finish();
    Some(Hook { quiesce, volumes, groups }.in_order())
}

/// Takes text of which a rule is made that has nothing else.
fn checked(spec: &mut Fields<'_>, name: &'static str, rule: impl Fn(String) -> Quiesce) -> Option<String> {
    let line = spec.peek(name).map_or(spec.line, |node| node.line);
    let text = spec.text(name)?;
    match rule(text.clone()).check() {
        Ok(()) => Some(text),
        Err(what) => {
            spec.wrong(line, name, what);
            None
        }
    }
}

/// Takes names, of which there may be none.
fn names<T: FromStr>(spec: &mut Fields<'_>, name: &'static str) -> Option<Vec<T>>
where
    T::Err: std::fmt::Display,
{
    let is_said = spec.has(name);
    let names = spec.each_parsed(name);
    is_said.then_some(names)
}
