//! Prometheus text format, version 0.0.4.

use crate::metrics::histogram::{BOUNDS_MICROS, Counted};
use std::fmt::{Display, Write};

/// Names and values of labels.
pub(crate) type Labels<'a> = Vec<(&'a str, String)>;

/// Metric families as text. Families without samples are omitted.
#[derive(Default)]
pub(crate) struct Exposition(String);

impl Exposition {
    /// Adds a gauge.
    pub(crate) fn gauge<'a, V: Display>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, V)>,
    ) {
        self.family(name, "gauge", help, samples);
    }

    /// Adds a counter, whose name ends with `_total`.
    pub(crate) fn counter<'a, V: Display>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, V)>,
    ) {
        self.family(name, "counter", help, samples);
    }

    fn family<'a, V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, V)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            self.head(name, kind, help);
        }
        for (labels, value) in samples {
            self.sample(name, &labels, &value);
        }
    }

    /// Adds a histogram of durations, in seconds.
    pub(crate) fn histogram<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, Counted)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            self.head(name, "histogram", help);
        }
        for (labels, counted) in samples {
            let mut so_far = 0;
            let bounds = BOUNDS_MICROS.iter().map(|micros| seconds(*micros * 1_000));
            for (count, bound) in counted.buckets.iter().zip(bounds.chain(["+Inf".to_owned()])) {
                so_far += count;
                let mut labels = labels.clone();
                labels.push(("le", bound));
                self.sample(&format!("{name}_bucket"), &labels, &so_far);
            }
            self.sample(&format!("{name}_sum"), &labels, &seconds(counted.nanos));
            self.sample(&format!("{name}_count"), &labels, &so_far);
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &Labels<'_>, value: &dyn Display) {
        let _ = write!(self.0, "{name}");
        for (number, (label, text)) in labels.iter().enumerate() {
            let before = if number == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{label}=\"{}\"", escaped(text));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{after} {value}");
    }

    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Formats nanoseconds exactly as seconds.
fn seconds(nanos: u64) -> String {
    let text = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `Content-Type` of the exposition.
pub const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_exact() {
        assert_eq!(
            [0, 1_000, 1_024_000, 1_000_000_000, 16_777_216_000].map(seconds),
            ["0", "0.000001", "0.001024", "1", "16.777216"]
        );
    }
}
