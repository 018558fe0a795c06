//! Tables without borders, left-aligned, never wrapped; and lists of facts.

use crate::hanging::{cut, hanging};
use blockd_api::format_time;
use comfy_table::{Cell, Color, Table as Grid, presets};
use jiff::Timestamp;
use uuid::Uuid;

/// Characters of a short UUID.
const SHORT_ID_CHARS: usize = 8;
/// Width that a list fits into.
const COLUMNS: usize = 80;
/// Width of the gap between columns.
const GAP: usize = 2;
/// Indentation of a text below its row.
const INDENT: &str = "  ";
/// Least width of a cut cell.
const MIN_CUT: usize = 6;
/// Least width of a cut cell in a table that would be too wide otherwise.
const MIN_CUT_OF_WIDE: usize = 4;
/// Greatest width of a complete cell that other cells make room for: a cause of a failure can be long.
const MAX_ROOM: usize = 24;

/// Width of a list: the usual columns within 80 characters, or all columns with complete ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Usual columns.
    Narrow,
    /// All columns.
    Wide,
}

impl Width {
    /// Formats a time: `2019-01-16T21:51Z`, or with weekday and seconds in a wide list.
    pub fn time(self, time: Timestamp) -> String {
        match self {
            Self::Narrow => short_time(time),
            Self::Wide => format_time(time),
        }
    }
}

/// Formats a time to the minute, in the form that options accept: `2019-01-16T21:51Z`.
pub fn short_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%MZ").to_string()
}

/// Returns the first 8 characters of a UUID.
pub fn short_uuid(id: Uuid) -> String {
    id.to_string().chars().take(SHORT_ID_CHARS).collect()
}

/// Colour of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Healthy.
    Good,
    /// In progress.
    Busy,
    /// Problem.
    Bad,
}

impl Tone {
    /// Returns the tone of a state such as `Done`, `Backup-Active` or `failed - disk full`.
    pub fn of_state(state: &str) -> Option<Self> {
        let word = state.split(' ').next().unwrap_or_default().rsplit('-').next().unwrap_or_default();
        match word.to_ascii_lowercase().as_str() {
            "done" | "up" | "ready" => Some(Self::Good),
            "active" | "pending" | "restoring" | "deleting" => Some(Self::Busy),
            "failed" | "damaged" => Some(Self::Bad),
            _ => None,
        }
    }

    const fn color(self) -> Color {
        match self {
            Self::Good => Color::Green,
            Self::Busy => Color::Yellow,
            Self::Bad => Color::Red,
        }
    }
}

/// Table of a header and rows.
#[derive(Debug)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    /// Columns whose cells are cut to fit the table.
    cut: Vec<usize>,
    /// Column of free text, the last one.
    text: Option<usize>,
}

impl Table {
    /// Creates an empty table.
    pub fn new(header: impl IntoIterator<Item = &'static str>) -> Self {
        Self { header: header.into_iter().collect(), rows: Vec::new(), cut: Vec::new(), text: None }
    }

    /// Creates a table of rows; `|` separates the titles of the columns.
    pub fn of<const N: usize>(header: &'static str, rows: impl IntoIterator<Item = [String; N]>) -> Self {
        let mut table = Self::new(header.split('|'));
        rows.into_iter().for_each(|row| table.row(row));
        table
    }

    /// Begins a table with a row for each item; its columns follow.
    pub fn list<T>(items: &[T], width: Width) -> Columns<'_, T> {
        let mut table = Self::new([]);
        table.rows.resize(items.len(), Vec::new());
        Columns { items, width, table }
    }

    /// Adds a row of some cells by the titles of their columns, and dashes.
    pub fn partial_row(&mut self, cells: &[(&str, String)]) {
        let mut row = vec!["-".to_owned(); self.header.len()];
        for (title, cell) in cells {
            if let Some(column) = self.column(title) {
                row[column].clone_from(cell);
            }
        }
        self.row(row);
    }

    /// Fits the table into its width, see [`Self::render_within`]: cuts the longest cells of these columns in
    /// the middle. Cells of other columns are complete. `|` separates the titles.
    #[must_use]
    pub fn fit(mut self, titles: &str) -> Self {
        self.cut = titles.split('|').filter_map(|title| self.column(title)).collect();
        self
    }

    /// Makes columns ones whose cells are cut, and `last` one if it has a long cell or the others leave no
    /// room.
    #[must_use]
    pub fn fit_but(self, titles: &str, last: &str) -> Self {
        let mut table = self.fit(titles);
        let is_long = |column: &usize| table.rows.iter().any(|row| row[*column].chars().count() > MAX_ROOM);
        let last = table
            .column(last)
            .filter(|last| is_long(last) || table.cut_width_beside(0, COLUMNS, MIN_CUT).is_none());
        table.cut.extend(last);
        table
    }

    /// Makes the last column one of free text, such as causes of failures: a text that exceeds the remaining
    /// width is on lines of its own below the row. Only a word that is longer than a line exceeds it.
    #[must_use]
    pub fn with_text(mut self) -> Self {
        self.text = self.header.len().checked_sub(1);
        self
    }

    fn column(&self, title: &str) -> Option<usize> {
        self.header.iter().position(|one| *one == title)
    }

    /// Returns the greatest width of a cell that is cut.
    fn cut_width(&self, columns: usize) -> usize {
        let texts = self.text.iter().flat_map(|text| self.rows.iter().map(|row| row[*text].chars().count()));
        // Longer ones are below their rows; without room for one beside cut cells, all are.
        let room = texts.filter(|width| *width <= MAX_ROOM).max().unwrap_or(0);
        let ways = [(room, MIN_CUT), (0, MIN_CUT), (0, MIN_CUT_OF_WIDE)];
        let mut widths = ways.into_iter().map(|(room, least)| self.cut_width_beside(room, columns, least));
        widths.find_map(|width| width).unwrap_or(MIN_CUT_OF_WIDE)
    }

    /// Returns the greatest width of a cell that is cut beside a text; `None` if no width leaves that room.
    fn cut_width_beside(&self, room: usize, columns: usize, least: usize) -> Option<usize> {
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| row[column].chars().count());
                let title = self.header[column].len();
                match () {
                    () if self.text == Some(column) => room.max(title),
                    () if self.cut.contains(&column) => cells.max().unwrap_or(0).max(title),
                    () => cells.max().unwrap_or(0).min(MAX_ROOM).max(title),
                }
            })
            .collect();
        let gaps = GAP * widths.len().saturating_sub(1);
        let total = |cut: usize| -> usize {
            let of = |(column, width): (usize, &usize)| match self.cut.contains(&column) {
                true => (*width).min(cut.max(self.header[column].len())),
                false => *width,
            };
            gaps + widths.iter().enumerate().map(of).sum::<usize>()
        };
        let widest = widths.iter().max().copied().unwrap_or(0);
        (least..=widest).rev().find(|width| total(*width) <= columns)
    }

    /// Cuts cells, and takes the texts that exceed the remaining width out of their rows.
    fn fitted(&self, columns: usize) -> (Vec<Vec<String>>, Vec<String>) {
        let mut rows = self.rows.clone();
        if !self.cut.is_empty() {
            let width = self.cut_width(columns);
            for row in &mut rows {
                self.cut.iter().for_each(|column| row[*column] = cut(&row[*column], width));
            }
        }
        let mut below = vec![String::new(); rows.len()];
        let Some(text) = self.text else { return (rows, below) };
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0).max(self.header[column].len()) + GAP
        };
        let room = columns.saturating_sub((0..text).map(width).sum());
        for (row, below) in rows.iter_mut().zip(&mut below) {
            if row[text].chars().count() > room {
                *below = std::mem::take(&mut row[text]);
            }
        }
        (rows, below)
    }

    /// Returns true without rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a row with as many cells as the header.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let row: Vec<_> = cells.into_iter().map(|cell| printable(&cell)).collect();
        debug_assert_eq!(row.len(), self.header.len(), "a row has the columns of its header");
        self.rows.push(row);
    }

    /// Renders the table within 80 characters, each line with a line end.
    pub fn render(&self, color: bool) -> String {
        self.render_within(color, COLUMNS)
    }

    /// Renders the table within a width, at least 80 characters, each line with a line end.
    pub fn render_within(&self, color: bool, columns: usize) -> String {
        let columns = columns.max(COLUMNS);
        let mut grid = Grid::new();
        grid.load_style(presets::NOTHING);
        if color {
            grid.enforce_styling();
            grid.style_text_only();
        } else {
            grid.force_no_tty();
        }
        grid.set_header(self.header.iter().map(Cell::new));
        let tone_column = self.header.iter().position(|title| matches!(*title, "STATUS" | "STATE"));
        let (rows, below) = self.fitted(columns);
        for row in &rows {
            grid.add_row(row.iter().enumerate().map(|(column, text)| {
                let tone = (Some(column) == tone_column).then(|| Tone::of_state(text)).flatten();
                match tone {
                    Some(tone) => Cell::new(text).fg(tone.color()),
                    None => Cell::new(text),
                }
            }));
        }
        for column in grid.column_iter_mut() {
            column.set_padding((0, GAP as u16));
        }
        let below = std::iter::once("").chain(below.iter().map(String::as_str));
        let lines = grid.trim_fmt();
        let lines = lines.lines().zip(below).map(|(line, text)| match text {
            "" => format!("{line}\n"),
            text => format!("{line}\n{}\n", hanging(INDENT, text, INDENT.len(), columns)),
        });
        lines.collect()
    }
}

/// Columns of a list: those of a narrow table, of a wide one, or of both, in the order of their addition.
#[derive(Debug)]
pub struct Columns<'a, T> {
    items: &'a [T],
    width: Width,
    table: Table,
}

impl<'a, T> Columns<'a, T> {
    /// Adds a column to narrow and wide tables; `|` separates their titles if they differ.
    pub fn both<S: ToString>(self, title: &'static str, cell: impl Fn(&'a T) -> S) -> Self {
        let (narrow, wide) = title.split_once('|').unwrap_or((title, title));
        let title = if self.width == Width::Narrow { narrow } else { wide };
        self.add(title, cell)
    }

    /// Adds a column to narrow tables.
    pub fn narrow<S: ToString>(self, title: &'static str, cell: impl Fn(&'a T) -> S) -> Self {
        if self.width == Width::Narrow { self.add(title, cell) } else { self }
    }

    /// Adds a column to narrow tables if a condition holds.
    pub fn narrow_if<S: ToString>(
        self,
        is_shown: bool,
        title: &'static str,
        cell: impl Fn(&'a T) -> S,
    ) -> Self {
        if is_shown { self.narrow(title, cell) } else { self }
    }

    /// Adds a column to wide tables.
    pub fn wide<S: ToString>(self, title: &'static str, cell: impl Fn(&'a T) -> S) -> Self {
        if self.width == Width::Wide { self.add(title, cell) } else { self }
    }

    fn add<S: ToString>(mut self, title: &'static str, cell: impl Fn(&'a T) -> S) -> Self {
        self.table.header.push(title);
        for (row, item) in self.table.rows.iter_mut().zip(self.items) {
            row.push(printable(&cell(item).to_string()));
        }
        self
    }

    /// Returns the table; a narrow one fits, see [`Table::fit`].
    pub fn fit(self, titles: &str) -> Table {
        if self.width == Width::Narrow { self.table.fit(titles) } else { self.table }
    }

    /// Returns the table; a narrow one fits and ends with a text, see [`Table::with_text`].
    pub fn fit_with_text(self, titles: &str) -> Table {
        if self.width == Width::Narrow { self.table.fit(titles).with_text() } else { self.table }
    }
}

/// List of properties, one per line: `Name : value`.
#[derive(Debug, Default)]
pub struct Facts(Vec<(&'static str, String)>);

impl Facts {
    /// Adds a property.
    #[allow(clippy::needless_pass_by_value, reason = "callers pass what they have, owned or not")]
    pub fn add(&mut self, name: &'static str, value: impl ToString) -> &mut Self {
        self.0.push((name, printable(&value.to_string())));
        self
    }

    /// Renders the properties, each line with a line end, within `columns` on a terminal.
    pub fn render(&self, columns: Option<usize>) -> String {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines = self.0.iter().map(|(name, value)| {
            let head = format!("{name:<width$} : ");
            hanging(&head, value, head.len(), columns.unwrap_or(usize::MAX)).trim_end().to_owned() + "\n"
        });
        lines.collect()
    }
}

/// Escapes control characters, so that names from a store cannot control the terminal.
pub fn printable(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(hidden) {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if hidden(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Formats a value; a dash for `None`.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Formats a number with its noun: `1 connection`, `2 connections`.
pub fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Formats a duration.
pub fn micros(micros: u64) -> String {
    match micros {
        0..10_000 => format!("{micros} µs"),
        10_000..10_000_000 => format!("{} ms", micros / 1000),
        _ => format!("{} s", micros / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["ID", "NAME", "STATUS"]);
        table.row(["1".into(), "ä".into(), "up - detached".into()]);
        table.row(["1234".into(), "x".repeat(300), "failed - no space".into()]);
        table
    }

    #[test]
    fn columns_are_aligned_and_never_wrapped() {
        let text = table().render(false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let column = |line: &str, word: &str| line.find(word).map(|at| line[..at].chars().count());
        assert_eq!(column(lines[0], "STATUS"), column(lines[1], "up"));
        assert_eq!(column(lines[0], "STATUS"), column(lines[2], "failed"));
        assert!(lines.iter().all(|line| *line == line.trim_end()) && !text.contains('\u{1b}'));
        assert!(lines[0].starts_with("ID    NAME "));
    }

    #[test]
    fn fitted_tables_cut_the_longest_names() {
        let long = "database-of-the-web-shop-in-berlin";
        let row = |name: &str, location: &str, cause: &str| {
            [name.to_owned(), location.to_owned(), "2019-01-16T21:51Z".to_owned(), cause.to_owned()]
        };
        let rows =
            [row(long, "nas", "-"), row("db", long, "the store is full, and other hosts still write to it")];
        let table = |fit: &str| {
            Table::of("NAME|LOCATION|STARTED|REASON", rows.clone()).fit(fit).with_text().render(false)
        };
        assert_eq!(
            table("NAME|LOCATION"),
            "\
NAME                       LOCATION                   STARTED            REASON
database-of-the-…n-berlin  nas                        2019-01-16T21:51Z  -
db                         database-of-the-…n-berlin  2019-01-16T21:51Z
  the store is full, and other hosts still write to it
"
        );
        assert!(table("LOCATION").contains(long), "other columns are complete");
        // A text that has no room beside cut cells cuts none.
        let row = ["a".repeat(24), "n".repeat(20), "t".repeat(24), "x".repeat(21)];
        let shown = Table::of("A|NAME|TIME|TEXT", [row]).fit("NAME").with_text().render(false);
        assert!(
            shown.contains(&"n".repeat(20)) && shown.contains(&format!("\n  {}\n", "x".repeat(21))),
            "{shown}"
        );
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("äbcdefgh", 6), "äbcd…h");
        let wide = Table::of("NAME|LOCATION|STARTED|REASON", rows).fit("NAME|LOCATION").with_text();
        let wide = wide.render_within(false, 160);
        assert!(wide.lines().count() == 3 && !wide.contains('…'), "{wide}");
        let fits = Table::of("A", [["x".repeat(80)]]).fit("A").render(false);
        assert!(!fits.contains('…'), "{fits}");
    }

    #[test]
    fn long_texts_are_wrapped_below_their_rows() {
        let id = "x".repeat(90);
        let long = format!("{} {id} {}", "word ".repeat(16), "word ".repeat(15));
        let text = Table::of("ID|REASON", ["fits", &long].map(|text| ["1".to_owned(), text.to_owned()]));
        let line = ["word"; 15].join(" ");
        let expected = format!("ID  REASON\n1   fits\n1\n  {line}\n  word\n{id}\n  {line}\n");
        assert_eq!(text.with_text().render(false), expected);
    }

    #[test]
    fn wide_characters_take_two_columns() {
        let mut table = Table::new(["LABELS", "STATUS"]);
        table.row(["app=db".into(), "up".into()]);
        table.row(["名=日本".into(), "up".into()]);
        table.row(["mood=😀".into(), "up".into()]);
        assert_eq!(table.render(false), "LABELS   STATUS\napp=db   up\n名=日本  up\nmood=😀  up\n");
    }

    #[test]
    fn colours_do_not_move_columns() {
        let colored = table().render(true);
        assert!(colored.contains("\u{1b}["));
        let mut plain = String::new();
        let mut rest = colored.as_str();
        while let Some((before, after)) = rest.split_once('\u{1b}') {
            plain.push_str(before);
            rest = after.split_once('m').map_or("", |(_, rest)| rest);
        }
        plain.push_str(rest);
        assert_eq!(plain, table().render(false));
    }

    #[test]
    fn states_have_tones() {
        assert_eq!(Tone::of_state("Backup-Done"), Some(Tone::Good));
        assert_eq!(Tone::of_state("Restore-Active"), Some(Tone::Busy));
        assert_eq!(Tone::of_state("failed - up to no good"), Some(Tone::Bad));
        assert_eq!(Tone::of_state("up - attached"), Some(Tone::Good));
        assert_eq!(Tone::of_state(""), None);
    }

    #[test]
    fn control_characters_are_shown_not_sent() {
        assert_eq!(printable("plain ä"), "plain ä");
        assert_eq!(printable("a\u{1b}[2Jb\nc\u{202e}"), "a\\u{1b}[2Jb\\u{a}c\\u{202e}");
    }
}
