//! Rules of Stork: commands in pods, which become hooks on this host.
//!
//! Such a rule has no hook of its own: the objects that name it as `preExecRule` or `postExecRule` decide. A
//! pair of rules of one object becomes one rule with both hooks.

use super::native::begin;
use crate::objects::{
    Kind,
    document::{Document, Problem},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Placeholder of a background command for a command that waits for the end of the snapshot.
const WAIT_COMMAND: &str = "${WAIT_CMD}";
/// Maximum time that a background command holds, in seconds.
const MAX_HOLD_S: u32 = 600;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    #[serde(default)]
    pod_selector: Map<String, Value>,
    actions: Vec<Action>,
    /// Fields without a meaning here, such as `container`.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Action {
    #[serde(rename = "type")]
    _kind: ActionKind,
    value: String,
    #[serde(default)]
    background: bool,
    /// Fields without a meaning here, such as `runInSinglePod`.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum ActionKind {
    Command,
}

/// Rule of Stork.
#[derive(Debug)]
pub struct ForeignRule {
    name: String,
    native: Document,
    /// Command before the snapshot, and the one that ends it afterwards.
    before: String,
    end: String,
    /// Command after the snapshot.
    after: String,
}

/// Returns true for a rule with a list.
pub fn is_foreign(document: &Document) -> bool {
    ["rules", "spec"].iter().any(|field| document.get(field).is_some_and(Value::is_array))
}

impl ForeignRule {
    /// Takes the rule.
    pub fn take(mut document: Document) -> Result<Self, Problem> {
        let name = document.name()?;
        let field = if document.has("rules") { "rules" } else { "spec" };
        let items: Vec<Item> = document.take_list(field)?;
        let mut native = begin(&document, Kind::Rule, &name);
        let selectors = items.iter().map(|item| &item.pod_selector).filter(|labels| !labels.is_empty());
        let selectors: Vec<Value> = selectors.cloned().map(Value::from).collect();
        if !selectors.is_empty() {
            native.set("spec.selectors", selectors.into(), field);
        }
        for (index, item) in items.iter().enumerate() {
            let place = format!("{field}[{index}]");
            item.rest.keys().for_each(|key| document.ignore(&format!("{place}.{key}")));
            for (action, found) in item.actions.iter().enumerate() {
                found
                    .rest
                    .keys()
                    .for_each(|key| document.ignore(&format!("{place}.actions[{action}].{key}")));
            }
        }
        document.move_all(&mut native, "metadata.labels metadata.annotations metadata.namespace");
        native.inherited = document.close(&format!("Rule/{name}"));
        let actions = || items.iter().flat_map(|item| &item.actions);
        let (mut before, mut end) = (String::from("set -e\n"), String::new());
        for (index, action) in actions().enumerate() {
            if action.background {
                before += &held(&name, index, &action.value);
                end += &format!("rm -rf \"{}\"\n", hold_dir(&name, index));
            } else {
                before += &format!("{}\n", action.value);
            }
        }
        let after = actions().map(|action| format!("{}\n", action.value)).collect();
        Ok(Self { name, native, before, end, after })
    }
}

fn hold_dir(name: &str, index: usize) -> String {
    format!("${{RUNTIME_DIRECTORY:-/tmp}}/{name}-{index}-${{BLOCKD_SNAPSHOT:-manual}}")
}

/// Returns commands that start a background command and wait until it holds.
fn held(name: &str, index: usize, command: &str) -> String {
    let dir = hold_dir(name, index);
    // In a file, because some programs split commands at semicolons.
    let wait = format!(
        "touch \"$HOLD/held\"; n=0; while [ -e \"$HOLD/held\" ] && [ $n -lt {MAX_HOLD_S} ]; do sleep 1; n=$((n+1)); done"
    );
    let waits = command.contains(WAIT_COMMAND);
    let command = command.replace(WAIT_COMMAND, "sh $HOLD/wait");
    let mut text = format!(
        "export HOLD=\"{dir}\"\nrm -rf \"$HOLD\"\nmkdir -m 0700 \"$HOLD\"\necho '{wait}' >\"$HOLD/wait\"\n(\n{command}\n) </dev/null >\"$HOLD/output\" 2>&1 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&- &\n"
    );
    if waits {
        text += "until [ -e \"$HOLD/held\" ]; do kill -0 $! || { cat \"$HOLD/output\" >&2; exit 1; }; sleep 0.1; done\n";
    }
    text
}

/// Adds the rules to the documents of all files; pairs of rules that one object names are joined.
pub fn join(rules: Vec<ForeignRule>, mut documents: Vec<Document>) -> Vec<Document> {
    let scripts: BTreeMap<String, String> =
        rules.iter().map(|rule| (rule.name.clone(), rule.after.clone())).collect();
    let mut before_names: BTreeSet<String> = BTreeSet::new();
    // Rules after a snapshot, by the rule that has the hook.
    let mut after_names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for object in &mut documents {
        for spec in ["spec", "spec.template.spec"] {
            let [pre, post] = ["preExecRule", "postExecRule"].map(|field| format!("{spec}.{field}"));
            let named = |path: &str| object.get(path).and_then(Value::as_str).map(str::to_owned);
            let (before, after) = (named(&pre), named(&post));
            before_names.extend(before.clone());
            let Some(after) = after.filter(|after| scripts.contains_key(after)) else { continue };
            let holder =
                before.filter(|before| scripts.contains_key(before)).unwrap_or_else(|| after.clone());
            if holder != after {
                object.set(&post, holder.as_str().into(), &post);
            }
            after_names.entry(holder).or_default().insert(after);
        }
    }
    let is_joined = |name: &str| {
        let of_others = after_names.iter().any(|(holder, all)| holder != name && all.contains(name));
        of_others && !before_names.contains(name) && !after_names.contains_key(name)
    };
    let (joined, rules): (Vec<ForeignRule>, Vec<ForeignRule>) =
        rules.into_iter().partition(|rule| is_joined(&rule.name));
    let mut joined: BTreeMap<String, Document> =
        joined.into_iter().map(|rule| (rule.name, rule.native)).collect();
    for ForeignRule { name, mut native, before, end, .. } in rules {
        let after = after_names.get(&name);
        for mut other in after.into_iter().flatten().filter_map(|one| joined.remove(one)) {
            if other.source.file != native.source.file {
                other
                    .inherited
                    .iter_mut()
                    .for_each(|one| one.path = format!("{}: {}", other.source.file, one.path));
            }
            native.inherited.append(&mut other.inherited);
        }
        let is_before = before_names.contains(&name) || after.is_none();
        let (before, end) = if is_before { (before, end) } else { Default::default() };
        let after = after.into_iter().flatten().filter_map(|one| scripts.get(one)).map(String::as_str);
        let after = end + &after.collect::<String>();
        for (path, text) in [("spec.preCommand", before), ("spec.postCommand", after)] {
            let command = if text.is_empty() { Value::Null } else { text.trim_end().into() };
            native.set(path, command, "rules");
        }
        documents.push(native);
    }
    documents
}
