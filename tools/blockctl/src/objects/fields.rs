//! Reading the fields of an object: each is taken once, what is left over is unknown, and everything that is
//! wrong is told at once, by path and line.

use super::node::{Key, Node, NodeValue};
use blockd_api::{Secret, SecretRef};
use std::{
    cell::RefCell,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Something that is wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1 on.
    pub line: usize,
    /// Where it is in its object, such as `policy.daily.retain`.
    pub path: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.what)
    }
}

/// Everything that is wrong in a file, and where the files are that it names.
#[derive(Debug)]
pub struct Reading {
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
    dir: PathBuf,
}

impl Reading {
    /// Of a file in this directory.
    pub fn new(dir: &Path) -> Self {
        Self { problems: RefCell::default(), warnings: RefCell::default(), dir: dir.to_owned() }
    }

    /// What is wrong, by line.
    pub fn problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems
    }

    /// Notes something that is wrong.
    pub fn wrong(&self, line: usize, path: &str, what: impl Into<String>) {
        self.problems.borrow_mut().push(Problem { line, path: path.to_owned(), what: what.into() });
    }

    /// Notes something that is taken, and means nothing here.
    pub fn ignored(&self, line: usize, path: &str, why: &str) {
        let what = format!("this is ignored: {why}");
        self.warnings.borrow_mut().push(Problem { line, path: path.to_owned(), what });
    }

    /// What was ignored since this was asked last, by line.
    pub fn take_warnings(&self) -> Vec<Problem> {
        let mut warnings = self.warnings.take();
        warnings.sort_by_key(|warning| warning.line);
        warnings
    }

    /// A path that is meant from where the file is.
    pub fn file(&self, path: &str) -> PathBuf {
        let path = self.dir.join(path);
        // As it is kept: what is as it should be is found out by comparing.
        std::path::absolute(&path).unwrap_or(path)
    }
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// In the file itself, or in a variable.
    Value(Secret),
    /// In a file.
    File(PathBuf),
    /// Where the daemon finds it.
    Elsewhere(SecretRef),
}

/// The fields of something.
#[derive(Debug)]
pub struct Fields<'a> {
    /// Where it is in its object.
    pub path: String,
    /// Its line.
    pub line: usize,
    /// What is wrong.
    pub reading: &'a Reading,
    left: Vec<&'a (Key, Node)>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The fields of a node; a problem if it has none.
    pub fn of(node: &'a Node, path: String, reading: &'a Reading) -> Option<Self> {
        match &node.value {
            NodeValue::Map(fields) => {
                let left = fields.iter().collect();
                Some(Self { path, line: node.line, reading, left, known: Vec::new() })
            }
            _ => {
                reading.wrong(node.line, &path, "fields are expected here");
                None
            }
        }
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Takes a field, wherever it stands; nothing if it is missing or empty.
    pub fn node(&mut self, name: &'static str) -> Option<&'a Node> {
        self.known.push(name);
        let at = self.left.iter().position(|(key, _)| key.name == name)?;
        let (_, node) = self.left.remove(at);
        (node.value != NodeValue::Null).then_some(node)
    }

    /// Looks at a field without taking it.
    pub fn peek(&self, name: &str) -> Option<&'a Node> {
        let (_, node) = self.left.iter().find(|(key, _)| key.name == name)?;
        (node.value != NodeValue::Null).then_some(node)
    }

    /// Notes that something about a field is wrong.
    pub fn wrong(&self, line: usize, name: &str, what: impl Into<String>) {
        self.reading.wrong(line, &self.path_of(name), what);
    }

    /// Takes a field that means nothing here, whatever is in it, and says so.
    pub fn ignore(&mut self, name: &'static str, why: &str) {
        if let Some(node) = self.node(name) {
            self.reading.ignored(node.line, &self.path_of(name), why);
        }
    }

    /// Notes that a field is missing.
    pub fn missing(&self, name: &str) {
        self.wrong(self.line, name, "this is missing");
    }

    fn scalar(&mut self, name: &'static str, expected: &str) -> Option<(usize, &'a str, bool)> {
        let node = self.node(name)?;
        match &node.value {
            NodeValue::Scalar { text, quoted } => Some((node.line, text, *quoted)),
            _ => {
                self.wrong(node.line, name, format!("{expected} is expected here"));
                None
            }
        }
    }

    /// Takes text.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.scalar(name, "text").map(|(_, text, _)| text.to_owned())
    }

    /// Takes text that must be there.
    pub fn required_text(&mut self, name: &'static str) -> Option<String> {
        let is_there = self.has(name);
        if !is_there {
            self.missing(name);
        }
        self.text(name)
    }

    /// Whether a field is there and not empty.
    pub fn has(&self, name: &str) -> bool {
        self.peek(name).is_some()
    }

    /// Takes what is written as text and understood by its type.
    pub fn parsed<T: FromStr>(&mut self, name: &'static str) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        let (line, text, _) = self.scalar(name, "text")?;
        text.parse().map_err(|error: T::Err| self.wrong(line, name, error.to_string())).ok()
    }

    /// The same of what must be there.
    pub fn required<T: FromStr>(&mut self, name: &'static str) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        if !self.has(name) {
            self.missing(name);
        }
        self.parsed(name)
    }

    /// Takes a whole number from `least` on.
    pub fn number(&mut self, name: &'static str, least: u32) -> Option<u32> {
        let (line, text, quoted) = self.scalar(name, "a whole number")?;
        match text.parse::<u32>() {
            Ok(number) if !quoted && number >= least => Some(number),
            _ => {
                self.wrong(line, name, format!("{text:?} is no whole number from {least} on"));
                None
            }
        }
    }

    /// Takes a truth value.
    pub fn flag(&mut self, name: &'static str) -> Option<bool> {
        match self.scalar(name, "true or false")? {
            (_, "true", _) => Some(true),
            (_, "false", _) => Some(false),
            (line, text, _) => {
                self.wrong(line, name, format!("{text:?} is neither true nor false"));
                None
            }
        }
    }

    /// Takes the fields of a field.
    pub fn fields(&mut self, name: &'static str) -> Option<Fields<'a>> {
        let path = self.path_of(name);
        Fields::of(self.node(name)?, path, self.reading)
    }

    /// Takes one thing or a list of them, each with its path.
    pub fn each(&mut self, name: &'static str) -> Vec<(String, &'a Node)> {
        let path = self.path_of(name);
        match self.node(name) {
            None => Vec::new(),
            Some(Node { value: NodeValue::List(items), .. }) => {
                items.iter().enumerate().map(|(nth, item)| (format!("{path}[{nth}]"), item)).collect()
            }
            Some(node) => vec![(path, node)],
        }
    }

    /// Takes one text or a list of them.
    pub fn each_parsed<T: FromStr>(&mut self, name: &'static str) -> Vec<T>
    where
        T::Err: fmt::Display,
    {
        let parse = |(path, node): (String, &Node)| match &node.value {
            NodeValue::Scalar { text, .. } => text
                .parse()
                .map_err(|error: T::Err| self.reading.wrong(node.line, &path, error.to_string()))
                .ok(),
            _ => {
                self.reading.wrong(node.line, &path, "text is expected here");
                None
            }
        };
        let found = self.each(name);
        found.into_iter().filter_map(parse).collect()
    }

    /// Takes a secret: text, or where it is, as `file: PATH` or `env: NAME`.
    pub fn secret(&mut self, name: &'static str) -> Option<SecretSource> {
        let path = self.path_of(name);
        let node = self.node(name)?;
        if let NodeValue::Scalar { text, .. } = &node.value {
            return Some(SecretSource::Value(Secret::new(text.clone())));
        }
        let mut source = Fields::of(node, path.clone(), self.reading)?;
        let (file, variable) = (source.text("file"), source.text("env"));
        let elsewhere = [
            source.text("from"),
            source.text("systemd").map(|name| format!("systemd:{name}")),
            source.text("command").map(|path| format!("command:{path}")),
        ];
        source.finish();
        let mut elsewhere = elsewhere.into_iter().flatten();
        if let (Some(reference), None) = (elsewhere.next(), elsewhere.next())
            && file.is_none()
            && variable.is_none()
        {
            return match reference.parse() {
                Ok(reference) => Some(SecretSource::Elsewhere(reference)),
                Err(error) => {
                    let error: blockd_api::SecretRefError = error;
                    self.reading.wrong(node.line, &path, error.to_string());
                    None
                }
            };
        }
        match (file, variable) {
            (Some(file), None) => Some(SecretSource::File(self.reading.file(&file))),
            (None, Some(variable)) => match std::env::var(&variable) {
                Ok(text) if !text.is_empty() => Some(SecretSource::Value(Secret::new(text))),
                _ => {
                    self.reading.wrong(
                        node.line,
                        &path,
                        format!("there is no text in the variable {variable}"),
                    );
                    None
                }
            },
            _ => {
                self.reading.wrong(
                    node.line,
                    &path,
                    "one of `file`, `env`, `systemd`, `command` and `from` is expected here",
                );
                None
            }
        }
    }

    /// Ends the reading: what nobody took is unknown.
    pub fn finish(self) {
        for (key, _) in &self.left {
            let mut known = self.known.clone();
            known.sort_unstable();
            known.dedup();
            let what = format!("there is no such field: there are {}", known.join(", "));
            self.wrong(key.line, &key.name, what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::node::documents;

    fn problems(text: &str, read: impl FnOnce(&mut Fields<'_>)) -> Vec<String> {
        let documents = documents(text).unwrap();
        let reading = Reading::new(Path::new("/dir"));
        let mut fields = Fields::of(&documents[0], String::new(), &reading).unwrap();
        read(&mut fields);
        fields.finish();
        reading.problems().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn everything_that_is_wrong_is_told_by_path_and_line() {
        let text = "a: x\nb:\n  c: 0\n  d: maybe\n  e: [1]\n  f: {g: 1}\nh: 2\n";
        let told = problems(text, |fields| {
            assert_eq!(fields.number("a", 1), None);
            let mut inner = fields.fields("b").unwrap();
            assert_eq!(inner.number("c", 1), None);
            assert_eq!(inner.flag("d"), None);
            assert_eq!(inner.text("e"), None);
            let mut more = inner.fields("f").unwrap();
            assert_eq!(more.required_text("needed"), None);
            more.finish();
            inner.finish();
        });
        assert_eq!(
            told,
            [
                "line 1: a: \"x\" is no whole number from 1 on",
                "line 3: b.c: \"0\" is no whole number from 1 on",
                "line 4: b.d: \"maybe\" is neither true nor false",
                "line 5: b.e: text is expected here",
                "line 6: b.f.needed: this is missing",
                "line 6: b.f.g: there is no such field: there are needed",
                "line 7: h: there is no such field: there are a, b",
            ]
        );
    }

    #[test]
    fn single_value_stands_for_list() {
        let told = problems("a: 5\nb: [1, x]\nc: null\n", |fields| {
            assert_eq!(fields.each_parsed::<u8>("a"), [5]);
            assert_eq!(fields.each_parsed::<u8>("b"), [1]);
            assert!(fields.each_parsed::<u8>("c").is_empty());
        });
        assert_eq!(told, ["line 2: b[1]: invalid digit found in string"]);
    }

    #[test]
    fn secrets_may_lie_where_the_daemon_finds_them() {
        let text = "a: {command: /x/y}\nb: {systemd: pass}\nc: {from: \"file:/x/y\"}\nd: {command: planted}\ne: {command: /x, systemd: x}\n";
        let told = problems(text, |fields| {
            for (name, reference) in [("a", "command:/x/y"), ("b", "systemd:pass"), ("c", "file:/x/y")] {
                let found = fields.secret(name);
                assert_eq!(found, Some(SecretSource::Elsewhere(reference.parse().unwrap())));
            }
            assert_eq!((fields.secret("d"), fields.secret("e")), (None, None));
        });
        assert!(told.len() == 2 && told[0].contains("line 4: d: after file: and command: comes"), "{told:?}");
        assert!(told[1].starts_with("line 5: e: one of") && !told.join("").contains("planted"), "{told:?}");
    }

    #[test]
    fn secrets_are_where_they_are_said_to_be() {
        let text = "a: plain\nb: {file: key}\nc: {file: /abs}\nd: {env: BLOCKCTL_NO_SUCH_VARIABLE}\ne: {}\n";
        let told = problems(text, |fields| {
            assert_eq!(fields.secret("a"), Some(SecretSource::Value(Secret::new("plain".into()))));
            assert_eq!(fields.secret("b"), Some(SecretSource::File("/dir/key".into())));
            assert_eq!(fields.secret("c"), Some(SecretSource::File("/abs".into())));
            assert_eq!((fields.secret("d"), fields.secret("e")), (None, None));
        });
        assert_eq!(
            told,
            [
                "line 4: d: there is no text in the variable BLOCKCTL_NO_SUCH_VARIABLE",
                "line 5: e: one of `file`, `env`, `systemd`, `command` and `from` is expected here",
            ]
        );
    }
}
