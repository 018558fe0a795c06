//! fio with its NBD engine.

use crate::harness::process::{both, die_with_parent, tool};
use serde_json::Value;
use std::process::{Child, Command, Output, Stdio};

/// A run of fio on an export.
pub struct Fio {
    child: Child,
}

/// Result.
pub struct Ended {
    /// Its output.
    pub output: Output,
}

impl Fio {
    /// Starts fio on a URI with further arguments; all its writes have checksums.
    pub fn start(dir: &std::path::Path, uri: &str, args: &[&str]) -> Self {
        let mut command = Command::new(tool("fio"));
        command.current_dir(dir).args([
            "--name=v",
            "--ioengine=nbd",
            "--output-format=json",
            "--verify_fatal=1",
        ]);
        command
            .arg(format!("--uri={uri}"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self { child: die_with_parent(&mut command).spawn().expect("fio") }
    }

    /// Waits for its end.
    pub fn wait(self) -> Ended {
        Ended { output: self.child.wait_with_output().expect("fio") }
    }
}

impl Ended {
    /// Everything that it said.
    pub fn text(&self) -> String {
        both(&self.output)
    }

    /// It must have succeeded.
    pub fn must_succeed(&self) {
        assert!(self.output.status.success(), "fio failed with {}:\n{}", self.output.status, self.text());
    }

    /// It may have lost its server, but must not have read wrong data.
    pub fn must_not_have_read_wrong_data(&self) {
        let text = self.text();
        assert!(
            !text.contains("verify: bad") && !text.contains("verify failed"),
            "fio read wrong data:\n{text}"
        );
    }

    /// Writes that were acknowledged.
    pub fn writes(&self) -> u64 {
        let text = String::from_utf8_lossy(&self.output.stdout);
        // Messages may stand before the document.
        let document = text.find('{').map(|at| &text[at..]).unwrap_or_default();
        let mut values = serde_json::Deserializer::from_str(document).into_iter::<Value>();
        let report = values
            .next()
            .and_then(Result::ok)
            .unwrap_or_else(|| panic!("fio printed no report:\n{}", self.text()));
        // The count of requests takes in the one that failed; those with a latency were answered.
        report["jobs"][0]["write"]["clat_ns"]["N"].as_u64().unwrap_or_default()
    }
}
