//! Histogram of durations in little memory.

/// Sub-buckets of each power of two: the resolution is 1/16.
const SUB: usize = 16;

/// Histogram with logarithmic buckets.
pub struct Histogram {
    counts: Vec<u64>,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; 64 * SUB], max: 0 }
    }
}

fn bucket(value: u64) -> usize {
    let value = value.max(SUB as u64);
    let power = value.ilog2() as usize;
    power * SUB + (value >> (power - SUB.ilog2() as usize)) as usize % SUB
}

/// Returns the largest value of a bucket.
fn top_of(bucket: usize) -> u64 {
    let (power, sub) = (bucket / SUB, (bucket % SUB) as u64);
    let step = 1u64 << (power - SUB.ilog2() as usize);
    (1u64 << power) + sub * step + (step - 1)
}

impl Histogram {
    /// Adds a value.
    pub fn add(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.max = self.max.max(value);
    }

    /// Adds the values of another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.max = self.max.max(other.max);
    }

    /// Returns the number of values.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the value at a rank per million, rounded up by at most 1/16; 0 without values.
    pub fn at_per_million(&self, part: u64) -> u64 {
        let wanted = (self.count() * part).div_ceil(1_000_000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return top_of(bucket).min(self.max);
            }
        }
        0
    }

    /// Returns count, median, 99 %, 99.9 % and maximum as a JSON object.
    pub fn to_json(&self) -> String {
        let at = |part| self.at_per_million(part);
        format!(
            r#"{{"count":{},"p50":{},"p99":{},"p999":{},"max":{}}}"#,
            self.count(),
            at(500_000),
            at(990_000),
            at(999_000),
            self.max
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_accurate_to_a_sixteenth() {
        let mut all = Histogram::default();
        assert_eq!(all.at_per_million(500_000), 0);
        for half in 0..2 {
            let mut histogram = Histogram::default();
            (1..=50_000).for_each(|value| histogram.add((half * 50_000 + value) * 100));
            all.merge(&histogram);
        }
        assert_eq!(all.count(), 100_000);
        for (part, exact) in [(500_000, 5_000_000), (990_000, 9_900_000), (999_000, 9_990_000)] {
            let found = all.at_per_million(part);
            assert!(found >= exact && found <= exact + exact / SUB as u64, "{part}: {found}");
        }
        assert_eq!(all.at_per_million(1_000_000), 10_000_000);
        all.add(u64::MAX);
        assert_eq!(all.at_per_million(1_000_000), u64::MAX);
    }
}
