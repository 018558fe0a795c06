//! Drawing on a terminal, and its restoration.

use crossterm::{
    cursor::{Hide, MoveTo, Show},
    execute, queue,
    style::Print,
    terminal::{
        Clear, ClearType, DisableLineWrap, EnableLineWrap, EnterAlternateScreen, LeaveAlternateScreen, size,
    },
};
use std::io::{self, Write};

/// Terminal in drawing mode. Dropping it restores the terminal.
pub struct Screen<W: Write>(W);

impl<W: Write> Screen<W> {
    /// Enters drawing mode.
    pub fn enter(mut terminal: W) -> io::Result<Self> {
        // The terminal truncates wide lines.
        execute!(terminal, EnterAlternateScreen, DisableLineWrap, Hide)?;
        Ok(Self(terminal))
    }

    /// Shows as many lines as fit.
    pub fn show(&mut self, text: &str) -> io::Result<()> {
        // Some terminals have no known height.
        let rows = size().ok().map(|(_, rows)| usize::from(rows)).filter(|rows| *rows > 0);
        self.show_in(text, rows.unwrap_or(24))
    }

    fn show_in(&mut self, text: &str, rows: usize) -> io::Result<()> {
        queue!(self.0, MoveTo(0, 0))?;
        for (number, line) in text.lines().take(rows).enumerate() {
            if number > 0 {
                queue!(self.0, Print("\r\n"))?;
            }
            queue!(self.0, Print(line), Clear(ClearType::UntilNewLine))?;
        }
        queue!(self.0, Clear(ClearType::FromCursorDown))?;
        self.0.flush()
    }
}

impl<W: Write> Drop for Screen<W> {
    fn drop(&mut self) {
        // Errors of a closed terminal are ignored.
        let _ = execute!(self.0, Show, EnableLineWrap, LeaveAlternateScreen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_is_restored_on_error() {
        let mut bytes = Vec::new();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut screen = Screen::enter(&mut bytes).unwrap();
            screen.show_in("one\ntwo\nthree\n", 2).unwrap();
            panic!("in the midst of it");
        }));
        assert!(outcome.is_err());
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("\u{1b}[?1049h\u{1b}[?7l\u{1b}[?25l"), "{text:?}");
        assert!(text.ends_with("\u{1b}[?25h\u{1b}[?7h\u{1b}[?1049l"), "{text:?}");
        assert!(text.contains("one\u{1b}[K\r\ntwo\u{1b}[K") && !text.contains("three"), "{text:?}");
    }
}
