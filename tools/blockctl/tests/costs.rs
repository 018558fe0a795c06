//! Estimates of costs, and budgets of tasks.

use crate::support::{Fake, list, ok, task};
use serde_json::json;

const SNAP: &str = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr";

fn matches(name: &str, lines: &[String]) {
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        let mut failed = task("Backup-Failed", 1);
        failed["resumable"] = json!(true);
        let fake = Fake::with_defaults(vec![("GET /v1/tasks", ok(list(json!([failed]))))]);
        insta::assert_snapshot!(name, fake.transcript(&lines.join("\n")));
    });
}

#[test]
fn estimates_are_tables_and_documents() {
    let lines = [
        "cloudsnap backup db --full --dry-run".to_owned(),
        format!("cloudsnap restore {SNAP} --dry-run"),
        format!("cloudsnap restore {SNAP} --in-place db --dry-run"),
        format!("cloudsnap drill run {SNAP} --dry-run"),
        "cloudsnap backup-group shop --dry-run".to_owned(),
        "cloudsnap drill run --group shop --dry-run".to_owned(),
        "cloudsnap backup db --dry-run --wait".to_owned(),
        format!("cloudsnap restore {SNAP} --lazy --dry-run"),
    ];
    let lines = lines.iter().flat_map(|line| [format!("blockctl {line}"), format!("blockctl -j {line}")]);
    let lines: Vec<String> = lines.collect();
    let shown = Fake::with_defaults(Vec::new()).transcript(&lines[..12].join("\n"));
    let tables = shown.lines().filter(|line| line.contains("  PUT  ") || line.contains("  0     "));
    assert!(tables.into_iter().all(|line| line.len() <= 80), "{shown}");
    matches("estimates", &lines);
}

#[test]
fn budgets_are_limits_of_tasks() {
    let lines = [
        "cs backup db --max-requests 5000 --max-egress 1GiB --max-cost 0.5".to_owned(),
        format!("cs restore {SNAP} -v copy --max-egress 20GiB"),
        format!("cs restore {SNAP} --in-place db --max-requests 7 --yes"),
        format!("cs drill run {SNAP} --max-requests 50"),
        "cs gc --max-requests 50 --yes".to_owned(),
        "cs resume 3f4f0a67-e12a-4d35-81ad-985657757352 --max-requests 500 --max-cost 2".to_owned(),
        "cs backup db --max-cost=-1".to_owned(),
        "cs backup db --max-cost 0.0000001".to_owned(),
        format!("cs restore {SNAP} --lazy --max-requests 7"),
    ];
    matches("budgets", &lines.map(|line| format!("blockctl {line}")));
}
