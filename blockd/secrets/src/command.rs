//! Secrets from the output of a program, such as a script around `bao kv get` or `vault kv get`.
//!
//! The program must be below the directory of secrets, so that users of the control API cannot run others,
//! and must belong to root or to the daemon's user. It gets no arguments, no input and an empty environment.

use crate::{
    error::ReferenceError,
    local::{Local, MAX_SECRET_BYTES, secret_of},
};
use rustix::process::{Pid, Signal, geteuid, kill_process_group};
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{io::AsyncReadExt, process::Command, time::timeout};
use zeroize::Zeroizing;

/// Process group of a program, which is killed on drop.
struct ProcessGroup(Option<Pid>);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // Fails if all processes have ended.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Runs a program and returns its output without one trailing line end.
pub(super) async fn run(
    local: &Local,
    path: &Path,
    limit: Duration,
) -> Result<Zeroizing<String>, ReferenceError> {
    let program = check(local, path)?;
    match timeout(limit, printed(&program)).await {
        Ok(text) => text,
        Err(_) => Err(failed(&program, format!("it did not end within {} ms", limit.as_millis()))),
    }
}

fn failed(path: &Path, what: String) -> ReferenceError {
    ReferenceError::CommandFailed { path: path.to_owned(), what }
}

/// Checks owner and mode of a program; returns its path without links.
fn check(local: &Local, path: &Path) -> Result<PathBuf, ReferenceError> {
    let found = local.beneath(path)?;
    let refused = |what: &'static str| Err(ReferenceError::Command { path: found.clone(), what });
    let metadata = found
        .metadata()
        .map_err(|error| ReferenceError::File { path: found.clone(), what: error.to_string() })?;
    if !metadata.is_file() || metadata.mode() & 0o111 == 0 {
        return refused("it is not an executable file");
    }
    if metadata.uid() != 0 && metadata.uid() != geteuid().as_raw() {
        return refused("its owner is neither root nor the user of blockd");
    }
    if metadata.mode() & 0o022 != 0 {
        return refused("other users can write to it: chmod go-w it");
    }
    Ok(found)
}

async fn printed(program: &Path) -> Result<Zeroizing<String>, ReferenceError> {
    let mut command = Command::new(program);
    command.env_clear().current_dir("/").process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| failed(program, format!("start failed: {error}")))?;
    let leader = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let group = ProcessGroup(leader);
    let output = child.stdout.take().ok_or_else(|| failed(program, "it has no output".to_owned()))?;
    // Sized to avoid a reallocation, which would leave an unerased copy.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES as usize + 1));
    let read = output.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes).await;
    read.map_err(|error| failed(program, error.to_string()))?;
    let status = match bytes.len() as u64 > MAX_SECRET_BYTES {
        // The program may wait for the rest to be read.
        true => return secret_of(&bytes),
        false => child.wait().await.map_err(|error| failed(program, error.to_string()))?,
    };
    drop(group);
    if !status.success() {
        return Err(failed(program, format!("{status}; run it as the user of blockd to see why")));
    }
    secret_of(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    const LONG: Duration = Duration::from_secs(600);

    struct Programs(tempfile::TempDir);

    impl Programs {
        fn put(&self, script: &str, mode: u32) -> PathBuf {
            let path = self.0.path().join("program");
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        }

        async fn run(&self, script: &str, limit: Duration) -> Result<String, String> {
            let path = self.put(script, 0o700);
            let local = Local { systemd_dir: None, file_dir: self.0.path().to_owned() };
            let text = run(&local, &path, limit).await;
            text.map(|text| text.as_str().to_owned()).map_err(|error| error.to_string())
        }
    }

    fn programs() -> Programs {
        Programs(tempfile::tempdir().unwrap())
    }

    #[tokio::test]
    async fn command_output_is_the_secret_and_its_environment_is_empty() {
        let programs = programs();
        assert_eq!(programs.run("echo planted", LONG).await.unwrap(), "planted");
        assert_eq!(programs.run("cat; printf 'two words \\r\\n'", LONG).await.unwrap(), "two words ");
        // The shell sets PWD and similar variables itself.
        let seen = programs.run("/usr/bin/env", LONG).await.unwrap();
        let names: Vec<_> =
            seen.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
        assert!(names.iter().all(|name| ["PWD", "OLDPWD", "SHLVL", "_"].contains(name)), "{names:?}");
    }

    #[tokio::test]
    async fn command_that_fails_is_an_error_without_its_output() {
        let programs = programs();
        for (script, word) in [
            ("echo planted; echo planted >&2; exit 3", "exit status: 3"),
            ("kill -9 $$", "signal: 9"),
            ("exit 0", "empty"),
            ("printf '\\377planted'", "UTF-8"),
            ("yes planted", "64 KiB"),
        ] {
            let error = programs.run(script, LONG).await.unwrap_err();
            assert!(error.contains(word) && !error.contains("planted"), "{script}: {error}");
        }
    }

    #[tokio::test]
    async fn command_over_its_time_limit_is_killed_with_its_children() {
        let programs = programs();
        let (fifo, pid) = (programs.0.path().join("fifo"), programs.0.path().join("pid"));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        // The child holds the FIFO open until it is killed.
        let script = format!("(echo $$ >{}; exec cat <>{}) & wait", pid.display(), fifo.display());
        let error = programs.run(&script, Duration::from_millis(300)).await.unwrap_err();
        assert!(error.contains("did not end within 300 ms"), "{error}");
        let is_held = || {
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
            rustix::fs::open(&fifo, flags, rustix::fs::Mode::empty()).is_ok()
        };
        while is_held() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn command_that_others_can_change_is_not_run() {
        let programs = programs();
        let outside = tempfile::tempdir().unwrap();
        let local = Local { systemd_dir: None, file_dir: outside.path().to_owned() };
        let path = programs.put("echo planted", 0o700);
        let error = run(&local, &path, LONG).await.unwrap_err().to_string();
        assert!(error.contains("secrets.file_dir"), "{error}");
        let local = Local { systemd_dir: None, file_dir: programs.0.path().to_owned() };
        for (mode, word) in [(0o720, "write"), (0o702, "write"), (0o600, "executable")] {
            let path = programs.put("echo planted", mode);
            let error = run(&local, &path, LONG).await.unwrap_err().to_string();
            assert!(error.contains(word), "{mode:o}: {error}");
        }
    }
}
