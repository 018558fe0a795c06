//! A virtual machine with a kernel that has an nbd driver: an emulated one, so that any host will do.
//!
//! The guest runs one of the scripts in `guest/`, which says on its console how far it is (`VM-STEP …`), what
//! went wrong (`VM-FAILED …`), and that it is done (`VM-DONE`). Killing the emulator is the guest's power
//! cut.

mod cpio;
mod parts;

pub use parts::Parts;

use crate::harness::process::die_with_parent;
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

/// Timeout of the guest's output: an emulated machine on a busy host is slow.
const SILENCE: Duration = Duration::from_secs(300);

/// A machine that can be booted, again and again with the same disk.
#[derive(Debug)]
pub struct Machine {
    parts: Parts,
    disk: PathBuf,
    initramfs: PathBuf,
    memory_mib: u32,
}

impl Machine {
    /// Makes one in this directory.
    pub fn new(parts: Parts, work: &Path, memory_mib: u32) -> Self {
        let disk = parts.make_disk(work);
        let initramfs = work.join("initramfs");
        std::fs::write(&initramfs, parts.initramfs()).expect("the first file system");
        Self { parts, disk, initramfs, memory_mib }
    }

    /// Boots it and runs a script; `arguments` are words that the script finds in its environment,
    /// `NAME=VALUE`.
    pub fn boot(&self, script: &str, arguments: &[String]) -> Guest {
        let mut command = self.parts.emulator();
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-nographic", "-no-reboot"]);
        command.args(["-nic", "none", "-m", &format!("{}M", self.memory_mib)]);
        command.arg("-kernel").arg(self.parts.kernel()).arg("-initrd").arg(&self.initramfs);
        let words = arguments.join(" ");
        command.args(["-append", &format!("console=ttyS0 quiet panic=-1 blockd.script={script} {words}")]);
        command.args(["-drive", &format!("file={},format=raw,if=virtio", self.disk.display())]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = die_with_parent(&mut command).spawn().expect("the emulator");
        let console = child.stdout.take().expect("the console");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Guest { child, lines, console: Vec::new() }
    }
}

/// A running machine; it is gone with this value.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    lines: Receiver<String>,
    console: Vec<String>,
}

impl Guest {
    /// The next line of the console; `None` when the machine is off.
    fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(SILENCE) {
            Ok(line) => {
                println!("{line}");
                self.console.push(line.clone());
                if line.contains("VM-FAILED") {
                    // What it has to say of the failure comes after this line.
                    while let Ok(more) = self.lines.recv_timeout(SILENCE) {
                        println!("{more}");
                    }
                    panic!("the guest failed: {line}");
                }
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the guest says nothing any more"),
        }
    }

    /// Waits for a line with this in it.
    pub fn wait_for(&mut self, marker: &str) -> String {
        loop {
            match self.line() {
                Some(line) if line.contains(marker) => return line,
                Some(_) => {}
                None => panic!("the guest ended before it said {marker:?}"),
            }
        }
    }

    /// Waits until it has done all and switched itself off; gives its console.
    pub fn finish(mut self) -> Vec<String> {
        self.wait_for("VM-DONE");
        while self.line().is_some() {}
        std::mem::take(&mut self.console)
    }

    /// Cuts its power.
    pub fn cut_power(mut self) -> Vec<String> {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
        std::mem::take(&mut self.console)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
