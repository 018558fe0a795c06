//! Parser of the Prometheus text format for tests. Stricter than Prometheus: it also checks the naming
//! conventions.

use std::collections::{BTreeMap, BTreeSet};

/// Sample of a metric.
#[derive(Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// Metric with its samples.
#[derive(Debug)]
pub struct Family {
    pub kind: String,
    pub samples: Vec<Sample>,
}

/// Parses a complete response; the error names the line.
pub fn parse(text: &str) -> Result<BTreeMap<String, Family>, String> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let (mut current, mut help): (Option<String>, Option<String>) = (None, None);
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("the last line lacks a line feed".into());
    }
    for (number, line) in text.lines().enumerate() {
        let invalid = |reason: &str| format!("line {}: {reason}: {line}", number + 1);
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').ok_or_else(|| invalid("the help is missing"))?;
            if words.trim() != words || !words.ends_with('.') {
                return Err(invalid("the help is not a sentence"));
            }
            help = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| invalid("the type is missing"))?;
            if help.take().as_deref() != Some(name) {
                return Err(invalid("the help line does not precede"));
            }
            check_name(name, kind).map_err(|reason| invalid(&reason))?;
            if families.insert(name.to_owned(), Family { kind: kind.to_owned(), samples: vec![] }).is_some() {
                return Err(invalid("duplicate family"));
            }
            current = Some(name.to_owned());
        } else {
            let sample = sample(line).map_err(|reason| invalid(&reason))?;
            let family = current.as_ref().ok_or_else(|| invalid("sample without a family"))?;
            let suffix = sample
                .name
                .strip_prefix(family.as_str())
                .ok_or_else(|| invalid("sample of another family"))?;
            let family = families.get_mut(family).ok_or_else(|| invalid("unknown family"))?;
            let fits = match family.kind.as_str() {
                "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
                _ => suffix.is_empty(),
            };
            if !fits {
                return Err(invalid("sample name does not fit the type"));
            }
            family.samples.push(sample);
        }
    }
    for (name, family) in &families {
        check_family(family).map_err(|reason| format!("{name}: {reason}"))?;
    }
    Ok(families)
}

fn check_name(name: &str, kind: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !name.bytes().all(plain) || !(name.starts_with("blockd_") || name.starts_with("process_")) {
        return Err("metric name violates the conventions".into());
    }
    match kind {
        "counter" if !name.ends_with("_total") => Err("counter name lacks _total".into()),
        "gauge" if name.ends_with("_total") || name.ends_with("_count") => {
            Err("gauge has the name of a counter".into())
        }
        "histogram" if !name.ends_with("_seconds") => Err("histogram name lacks its unit".into()),
        "counter" | "gauge" | "histogram" => Ok(()),
        _ => Err("unknown type".into()),
    }
}

fn sample(line: &str) -> Result<Sample, String> {
    let (head, value) = line.rsplit_once(' ').ok_or("the value is missing")?;
    let value: f64 = value.parse().map_err(|_| "the value is not a number")?;
    if !value.is_finite() {
        return Err("the value is not finite".into());
    }
    let Some((name, rest)) = head.split_once('{') else {
        return Ok(Sample { name: head.to_owned(), labels: BTreeMap::new(), value });
    };
    let mut rest = rest.strip_suffix('}').ok_or("unterminated labels")?;
    let mut labels = BTreeMap::new();
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"").ok_or("label without a value")?;
        if label.is_empty() || !label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
            return Err("label name violates the conventions".into());
        }
        let (mut text, mut chars) = (String::new(), after.char_indices());
        let end = loop {
            match chars.next().ok_or("unterminated label value")? {
                (at, '"') => break at,
                (_, '\\') => text.push(match chars.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, c @ ('\\' | '"'))) => c,
                    _ => return Err("unknown escape sequence".into()),
                }),
                (_, c) => text.push(c),
            }
        };
        if labels.insert(label.to_owned(), text).is_some() {
            return Err("duplicate label".into());
        }
        rest = &after[end + 1..];
        match rest.strip_prefix(',') {
            Some(next) if !next.is_empty() => rest = next,
            Some(_) => return Err("trailing comma".into()),
            None if !rest.is_empty() => return Err("missing comma between labels".into()),
            None => {}
        }
    }
    Ok(Sample { name: name.to_owned(), labels, value })
}

fn check_family(family: &Family) -> Result<(), String> {
    if family.samples.is_empty() {
        return Err("the family has no samples".into());
    }
    let mut seen = BTreeSet::new();
    let mut keys = BTreeSet::new();
    for sample in &family.samples {
        if !seen.insert((sample.name.clone(), sample.labels.clone())) {
            return Err(format!("duplicate sample {:?}", sample.labels));
        }
        if sample.value < 0.0 && family.kind != "gauge" {
            return Err("negative count".into());
        }
        keys.insert(sample.labels.keys().filter(|key| *key != "le").cloned().collect::<Vec<_>>());
    }
    if keys.len() != 1 {
        return Err("samples have different label names".into());
    }
    if family.kind != "histogram" {
        return Ok(());
    }
    let mut series: BTreeMap<Vec<(String, String)>, Vec<&Sample>> = BTreeMap::new();
    for sample in &family.samples {
        let labels = sample.labels.iter().filter(|(key, _)| *key != "le");
        series.entry(labels.map(|(a, b)| (a.clone(), b.clone())).collect()).or_default().push(sample);
    }
    for samples in series.values() {
        let (mut bound_before, mut count_before) = (f64::NEG_INFINITY, 0.0);
        for bucket in samples.iter().filter(|sample| sample.name.ends_with("_bucket")) {
            let bound = bucket.labels.get("le").ok_or("bucket without a bound")?;
            let bound: f64 = bound.parse().map_err(|_| "bucket bound is not a number")?;
            if bound <= bound_before || bucket.value < count_before {
                return Err("buckets are not cumulative".into());
            }
            (bound_before, count_before) = (bound, bucket.value);
        }
        let count = samples.iter().find(|sample| sample.name.ends_with("_count"));
        let has_sum = samples.iter().any(|sample| sample.name.ends_with("_sum"));
        if bound_before != f64::INFINITY || count.map(|sample| sample.value) != Some(count_before) || !has_sum
        {
            return Err("histogram is incomplete".into());
        }
    }
    Ok(())
}

#[test]
fn malformed_exposition_is_rejected() {
    let good = "# HELP blockd_a A.\n# TYPE blockd_a gauge\nblockd_a{v=\"x\"} 1\n";
    assert!(parse(good).is_ok());
    for bad in [
        "blockd_a 1\n",
        &good[..good.len() - 1],
        &good.replace("# HELP blockd_a A.\n", ""),
        &good.replace("gauge", "counter"),
        &good.replace("gauge", "thing"),
        &good.replace(" 1", " NaN"),
        &good.replace(" 1", " x"),
        &good.replace("\"x\"", "\"x"),
        &good.replace("v=", "V="),
        &good.replace("{v=\"x\"}", "{v=\"x\",}"),
        &good.replace("{v=\"x\"}", "{v=\"x\",v=\"y\"}"),
        &good.replace("\"x\"", "\"\\q\""),
        &format!("{good}blockd_a{{v=\"x\"}} 2\n"),
        &format!("{good}blockd_a{{w=\"x\"}} 2\n"),
        &format!("{good}{good}"),
        &good.replace("blockd_a{", "blockd_b{"),
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}
