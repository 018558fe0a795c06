//! Progress of a task: a bar on a terminal, plain lines otherwise.

use crate::table::printable;
use blockd_api::{ByteSize, format_duration, tasks::Task};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// Interval of plain lines without other changes.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows the progress of one task on stderr.
pub enum Progress {
    /// Shows nothing.
    Silent,
    /// Draws a bar.
    Bar(ProgressBar),
    /// Writes lines.
    Lines(Lines),
}

/// Current phase and progress.
pub struct Measured<'a> {
    /// Prefix of a plain line.
    pub head: String,
    /// Name of the phase; a change prints a line.
    pub phase: &'a str,
    /// Bytes done.
    pub done_bytes: u64,
    /// Total bytes; 0 if unknown.
    pub total_bytes: u64,
}

/// State of the last line.
pub struct Lines {
    began: Instant,
    first_bytes: Option<u64>,
    last: Option<(Instant, String)>,
}

impl Progress {
    /// Creates a bar on a terminal, plain lines otherwise, or nothing if `silent`.
    pub fn new(silent: bool) -> Self {
        if silent {
            Self::Silent
        } else if io::stderr().is_terminal() {
            Self::Bar(ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()))
        } else {
            Self::Lines(Lines { began: Instant::now(), first_bytes: None, last: None })
        }
    }

    /// Shows the state of a task.
    pub fn update(&mut self, task: &Task) {
        self.show(&Measured {
            head: format!("{}: {}", task.state, phase(task)),
            phase: phase(task),
            done_bytes: task.processed_bytes,
            total_bytes: task.total_bytes,
        });
    }

    /// Shows a state.
    pub fn show(&mut self, seen: &Measured<'_>) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => {
                let template = match seen.total_bytes {
                    0 => "{msg:12!} {spinner} {bytes}  {elapsed}",
                    // The last requests may wait for a bandwidth limit.
                    total if seen.done_bytes >= total => {
                        "{msg:12!} [{bar:30}] {percent:>3}%  {bytes} of {total_bytes}  {elapsed}"
                    }
                    _ => {
                        "{msg:12!} [{bar:30}] {percent:>3}%  {bytes} of {total_bytes}  {bytes_per_sec}  ETA {eta}"
                    }
                };
                if bar.length() != (seen.total_bytes > 0).then_some(seen.total_bytes) {
                    match seen.total_bytes {
                        0 => bar.unset_length(),
                        total => bar.set_length(total),
                    }
                }
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar.set_message(printable(seen.phase));
                bar.set_position(seen.done_bytes);
                bar.tick();
            }
            Self::Lines(lines) => {
                let now = Instant::now();
                let first = *lines.first_bytes.get_or_insert(seen.done_bytes);
                let due = match &lines.last {
                    Some((when, shown)) => *shown != seen.phase || now.duration_since(*when) >= LINE_INTERVAL,
                    None => true,
                };
                if due {
                    let done = seen.done_bytes.saturating_sub(first);
                    let rate = done as f64 / now.duration_since(lines.began).as_secs_f64().max(0.001);
                    lines.last = Some((now, seen.phase.to_owned()));
                    // Errors of a closed stderr are ignored.
                    let _ = writeln!(io::stderr().lock(), "{}", line(seen, rate));
                }
            }
        }
    }

    /// Prints a note beside the progress.
    pub fn note(&self, text: &str) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => bar.suspend(|| {
                // Errors of a closed stderr are ignored.
                let _ = writeln!(io::stderr().lock(), "{text}");
            }),
            Self::Lines(_) => {
                let _ = writeln!(io::stderr().lock(), "{text}");
            }
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn phase(task: &Task) -> &str {
    if task.phase.is_empty() { task.state.stage.title() } else { &task.phase }
}

/// Formats a plain line: `Backup-Active: uploading 12% (1.2 GiB of 10 GiB, 120 MiB/s, ETA 1m20s)`.
fn line(seen: &Measured<'_>, bytes_per_second: f64) -> String {
    let done = ByteSize::from_bytes(seen.done_bytes);
    let head = printable(&seen.head);
    match (seen.total_bytes, seen.done_bytes) {
        (0, 0) => return head,
        (0, _) => return format!("{head} ({done})"),
        _ => {}
    }
    let percent = u128::from(seen.done_bytes) * 100 / u128::from(seen.total_bytes);
    let total = ByteSize::from_bytes(seen.total_bytes);
    let mut text = format!("{head} {}% ({done} of {total}", percent.min(100));
    let left = seen.total_bytes.saturating_sub(seen.done_bytes);
    if bytes_per_second >= 1.0 && left > 0 {
        let rate = ByteSize::from_bytes(bytes_per_second as u64);
        let eta_s = (left as f64 / bytes_per_second).round();
        text += &format!(", {rate}/s, ETA {}", format_duration(eta_s));
    }
    text + ")"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(total_bytes: u64, done_bytes: u64) -> Measured<'static> {
        Measured { head: "Backup-Active: uploading".to_owned(), phase: "uploading", done_bytes, total_bytes }
    }

    #[test]
    fn progress_lines_show_percentage_and_eta() {
        assert_eq!(line(&seen(0, 0), 5.0), "Backup-Active: uploading");
        assert_eq!(line(&seen(0, 4096), 5.0), "Backup-Active: uploading (4 KiB)");
        assert_eq!(
            line(&seen(10 << 30, 1 << 30), f64::from(128 << 20)),
            "Backup-Active: uploading 10% (1 GiB of 10 GiB, 128 MiB/s, ETA 1m12s)"
        );
        assert_eq!(line(&seen(10, 20), 5.0), "Backup-Active: uploading 100% (20 B of 10 B)");
        assert_eq!(line(&seen(u64::MAX, 0), 0.0), "Backup-Active: uploading 0% (0 B of 16 EiB)");
    }
}
