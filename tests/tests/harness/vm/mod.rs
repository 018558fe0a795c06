//! Virtual machine with a kernel that has an nbd driver, emulated, so that it runs on any host.
//!
//! The guest runs a script of `guest/`, which prints its steps (`VM-STEP …`), failures (`VM-FAILED …`) and
//! its end (`VM-DONE`) on the console. Killing the emulator cuts the guest's power.

mod cpio;
mod parts;

pub use parts::Parts;

use crate::harness::process::Process;
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

/// Timeout of the guest's output: an emulated machine on a busy host is slow.
const SILENCE: Duration = Duration::from_secs(300);

/// A machine that boots repeatedly from the same disk.
#[derive(Debug)]
pub struct Machine {
    parts: Parts,
    disk: PathBuf,
    initramfs: PathBuf,
    memory_mib: u32,
}

impl Machine {
    /// Creates a machine in this directory.
    pub fn new(parts: Parts, work: &Path, memory_mib: u32) -> Self {
        let disk = parts.make_disk(work);
        let initramfs = work.join("initramfs");
        std::fs::write(&initramfs, parts.initramfs()).expect("the initramfs");
        Self { parts, disk, initramfs, memory_mib }
    }

    /// Boots the machine and runs a script with the environment variables `arguments` (`NAME=VALUE`).
    pub fn boot(&self, script: &str, arguments: &[String]) -> Guest {
        let mut command = self.parts.emulator();
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-nographic", "-no-reboot"]);
        command.args(["-nic", "none", "-m", &format!("{}M", self.memory_mib)]);
        command.arg("-kernel").arg(self.parts.kernel()).arg("-initrd").arg(&self.initramfs);
        let words = arguments.join(" ");
        command.args(["-append", &format!("console=ttyS0 quiet panic=-1 blockd.script={script} {words}")]);
        command.args(["-drive", &format!("file={},format=raw,if=virtio", self.disk.display())]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut emulator = Process::start(&mut command);
        let console = emulator.take_stdout();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Guest { emulator, lines, console: Vec::new() }
    }
}

/// A running machine, killed on drop.
#[derive(Debug)]
pub struct Guest {
    emulator: Process,
    lines: Receiver<String>,
    console: Vec<String>,
}

impl Guest {
    /// Returns the next line of the console; `None` when the machine is off.
    fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(SILENCE) {
            Ok(line) => {
                println!("{line}");
                self.console.push(line.clone());
                if line.contains("VM-FAILED") {
                    // Details of the failure follow.
                    while let Ok(more) = self.lines.recv_timeout(SILENCE) {
                        println!("{more}");
                    }
                    panic!("the guest failed: {line}");
                }
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no output of the guest for {} s", SILENCE.as_secs()),
        }
    }

    /// Waits for a line that contains `marker`.
    pub fn wait_for(&mut self, marker: &str) -> String {
        loop {
            match self.line() {
                Some(line) if line.contains(marker) => return line,
                Some(_) => {}
                None => panic!("the guest ended before it printed {marker:?}"),
            }
        }
    }

    /// Waits until the guest has powered off. Returns its console output.
    pub fn finish(mut self) -> Vec<String> {
        self.wait_for("VM-DONE");
        while self.line().is_some() {}
        std::mem::take(&mut self.console)
    }

    /// Cuts the power. Returns the console output.
    pub fn cut_power(mut self) -> Vec<String> {
        self.emulator.kill();
        std::mem::take(&mut self.console)
    }
}
