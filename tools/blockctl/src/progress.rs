//! How a task gets on, for people: a bar on a terminal, plain lines elsewhere.

use blockd_api::{ByteSize, format_duration, tasks::Task};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// How often a plain line is written when nothing else changes.
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

/// What was written last.
pub struct Lines {
    began: Instant,
    first_bytes: Option<u64>,
    last: Option<(Instant, String)>,
}

impl Progress {
    /// A bar if stderr is a terminal, lines if it is not, nothing if the caller wants silence.
    pub fn new(silent: bool) -> Self {
        if silent {
            Self::Silent
        } else if io::stderr().is_terminal() {
            Self::Bar(ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()))
        } else {
            Self::Lines(Lines { began: Instant::now(), first_bytes: None, last: None })
        }
    }

    /// Shows the task as it is now.
    pub fn update(&mut self, task: &Task) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => {
                let template = if task.bytes_total > 0 {
                    "{msg:12!} [{bar:30}] {percent:>3}%  {bytes} of {total_bytes}  {bytes_per_sec}  ETA {eta}"
                } else {
                    "{msg:12!} {spinner} {bytes}  {elapsed}"
                };
                if bar.length() != (task.bytes_total > 0).then_some(task.bytes_total) {
                    match task.bytes_total {
                        0 => bar.unset_length(),
                        total => bar.set_length(total),
                    }
                }
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar.set_message(crate::output::printable(phase(task)));
                bar.set_position(task.bytes_processed);
                bar.tick();
            }
            Self::Lines(lines) => {
                let now = Instant::now();
                let first = *lines.first_bytes.get_or_insert(task.bytes_processed);
                let due = match &lines.last {
                    Some((when, shown)) => *shown != task.phase || now.duration_since(*when) >= LINE_INTERVAL,
                    None => true,
                };
                if due {
                    let done = task.bytes_processed.saturating_sub(first);
                    let rate = done as f64 / now.duration_since(lines.began).as_secs_f64().max(0.001);
                    lines.last = Some((now, task.phase.clone()));
                    // Nothing can be done about a closed stderr.
                    let _ = writeln!(io::stderr().lock(), "{}", line(task, rate));
                }
            }
        }
    }

    /// Says something beside the progress.
    pub fn note(&self, text: &str) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => bar.suspend(|| {
                // Nothing can be done about a closed stderr.
                let _ = writeln!(io::stderr().lock(), "{text}");
            }),
            Self::Lines(_) => {
                let _ = writeln!(io::stderr().lock(), "{text}");
            }
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn phase(task: &Task) -> &str {
    if task.phase.is_empty() { task.state.stage.title() } else { &task.phase }
}

/// One plain line: `Backup-Active: uploading 12% (1.2 GiB of 10 GiB, 120 MiB/s, ETA 1m20s)`.
fn line(task: &Task, bytes_per_second: f64) -> String {
    let done = ByteSize::from_bytes(task.bytes_processed);
    let head = crate::output::printable(&format!("{}: {}", task.state, phase(task)));
    match (task.bytes_total, task.bytes_processed) {
        (0, 0) => return head,
        (0, _) => return format!("{head} ({done})"),
        _ => {}
    }
    let percent = u128::from(task.bytes_processed) * 100 / u128::from(task.bytes_total);
    let total = ByteSize::from_bytes(task.bytes_total);
    let mut text = format!("{head} {}% ({done} of {total}", percent.min(100));
    let left = task.bytes_total.saturating_sub(task.bytes_processed);
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
    use serde_json::json;

    fn task(total: u64, processed: u64) -> Task {
        serde_json::from_value(json!({
            "name": "3f4f0a67-e12a-4d35-81ad-985657757352", "type": "backup", "sourceVolume": null, "volume": "v",
            "state": "Backup-Active", "node": "n", "credential": "00000000-0000-0000-0000-000000000000",
            "credentialName": null, "phase": "uploading", "bytesTotal": total, "bytesProcessed": processed,
            "bytesUploaded": 0, "bytesDownloaded": 0, "bytesDirty": 0,
            "requests": {"put": 0, "get": 0, "list": 0, "delete": 0, "head": 0}, "freezeStallMicros": null,
            "started": "2019-01-16T21:51:53Z", "completed": null, "timeElapsed": 1.0, "backupType": "full",
            "error": null, "resumed": 0, "version": 1
        }))
        .unwrap()
    }

    #[test]
    fn lines_say_how_far_and_how_long() {
        assert_eq!(line(&task(0, 0), 5.0), "Backup-Active: uploading");
        assert_eq!(line(&task(0, 4096), 5.0), "Backup-Active: uploading (4 KiB)");
        assert_eq!(
            line(&task(10 << 30, 1 << 30), f64::from(128 << 20)),
            "Backup-Active: uploading 10% (1 GiB of 10 GiB, 128 MiB/s, ETA 1m12s)"
        );
        assert_eq!(line(&task(10, 20), 5.0), "Backup-Active: uploading 100% (20 B of 10 B)");
        assert_eq!(line(&task(u64::MAX, 0), 0.0), "Backup-Active: uploading 0% (0 B of 16 EiB)");
    }
}
