use super::*;
use rustix::{
    fs::{FlockOperation, flock},
    thread::{capability_is_in_ambient_set, configure_capability_in_ambient_set},
};

fn run(command: &str, timeout: Duration) -> QuiesceStep {
    let env = [("BLOCKD_SNAPSHOT".to_owned(), "monday".to_owned())];
    Hook { timeout, env: &env, ..hook(command) }.run()
}

fn hook(command: &str) -> Hook<'_> {
    let kind = QuiesceKind::PreCommand;
    Hook { kind, rule: None, command, user: None, timeout: LONG, env: &[], lock: None, stopping: None }
}

#[test]
fn log_contains_neither_commands_nor_their_output() {
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = Arc::new(Mutex::new(Vec::new()));
    let written = Arc::clone(&log);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || Log(Arc::clone(&written)))
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        // A test that reaches the call site first, at this moment, caches that there is no subscriber.
        run("true", LONG);
        tracing::callsite::rebuild_interest_cache();
        run("echo planted; echo planted >&2; exit 3", LONG)
    });
    let log = String::from_utf8(log.lock().clone()).unwrap();
    assert!(log.contains("command run") && log.contains("exit_status=3"), "{log}");
    assert!(!log.contains("planted"), "{log}");
}

fn wait_for_the_end_of(process: &str) {
    let gone = |status: String| status.is_empty() || status.contains("State:\tZ");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !gone(std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default()) {
        assert!(Instant::now() < deadline, "process {process} is left");
        std::thread::yield_now();
    }
}

const LONG: Duration = Duration::from_secs(600);

#[test]
fn command_environment_holds_no_variable_of_the_daemon() {
    let step = run("/usr/bin/env >&2", LONG);
    let output = step.output.unwrap();
    let names: Vec<&str> = output.lines().filter_map(|line| line.split_once('=')).map(|(n, _)| n).collect();
    // The shell sets the last variables itself.
    let known = [
        "PATH",
        "LANG",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "BLOCKD_SNAPSHOT",
        "PWD",
        "OLDPWD",
        "SHLVL",
        "_",
    ];
    let unknown: Vec<_> = names.iter().filter(|name| !known.contains(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(names.contains(&"PATH") && names.contains(&"BLOCKD_SNAPSHOT"), "{names:?}");
}

#[test]
fn command_gets_its_environment_and_reports_its_exit_status() {
    let good = run("test \"$BLOCKD_SNAPSHOT\" = monday", LONG);
    assert_eq!((good.exit_status, good.error), (Some(0), None));
    let bad = run("echo first >&2; echo cannot lock >&2; exit 3", LONG);
    assert_eq!(bad.exit_status, Some(3));
    assert_eq!(bad.error.as_deref(), Some("exit status 3: cannot lock"));
    let killed = run("kill -9 $$", LONG);
    assert_eq!((killed.exit_status, killed.error.as_deref()), (None, Some("killed by signal 9")));
}

#[test]
fn last_command_output_is_kept_from_both_streams() {
    let step = run("echo out; echo err >&2", LONG);
    assert_eq!(step.output.as_deref(), Some("out\nerr\n"));
    assert!(step.started_at.is_some());
    assert_eq!(run("true", LONG).output, None);
    let long = run("yes filler | head -c 100000; echo the end", LONG).output.unwrap();
    assert_eq!(long.len(), MAX_OUTPUT_BYTES);
    assert!(long.ends_with("the end\n"), "{long}");
}

#[test]
fn command_runs_as_its_user_without_daemon_privileges() {
    let own = User::from_uid(nix::unistd::getuid()).unwrap().unwrap();
    let unknown = Hook { user: Some("no-such-user"), ..hook("true") }.run();
    assert_eq!(unknown.error.as_deref(), Some("start failed: there is no user no-such-user on this host"));
    if !own.uid.is_root() {
        eprintln!("=== SKIPPED: only root can run commands as another user ===");
        return;
    }
    let step = Hook { user: Some("nobody"), ..hook("id -un; id -Gn; echo $USER; ! cat /etc/shadow") }.run();
    assert_eq!(step.error, None, "{step:?}");
    let output = step.output.unwrap();
    let output: Vec<&str> = output.lines().collect();
    assert_eq!(output[..3], ["nobody", "nogroup", "nobody"], "{output:?}");
    // Background processes are killed as well.
    let user = Some("nobody");
    let slow = Hook { user, timeout: Duration::from_millis(300), ..hook("sleep 600") }.run();
    assert_eq!(slow.error.as_deref(), Some("killed after 0 s"));
}

#[test]
fn command_has_no_capabilities_of_the_daemon() {
    let mut sets = capabilities(None).unwrap();
    let given = CapabilitySet::KILL;
    if !sets.permitted.contains(given) {
        eprintln!("=== SKIPPED: capabilities are needed to pass them to commands ===");
        return;
    }
    let own = User::from_uid(geteuid()).unwrap().unwrap().name;
    std::thread::spawn(move || {
        sets.inheritable |= given;
        set_capabilities(None, sets).unwrap();
        configure_capability_in_ambient_set(given, true).unwrap();
        for user in [None, Some(own.as_str())] {
            let step = Hook { user, ..hook("grep -E 'Cap(Inh|Amb)' /proc/self/status") }.run();
            let output = step.output.unwrap();
            let sets: Vec<_> = output.lines().map(|line| line.split_whitespace().last().unwrap()).collect();
            assert_eq!(sets, ["0000000000000000"; 2], "{user:?}");
        }
        assert_eq!(capabilities(None).unwrap(), sets);
        assert!(capability_is_in_ambient_set(given).unwrap(), "the daemon needs them");
    })
    .join()
    .unwrap();
}

#[test]
fn command_output_is_complete_on_a_busy_machine() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let written = vec![b'x'; 3_000];
    writer.write_all(&written).unwrap();
    let output = listen(reader.into()).unwrap();
    // The reader thread may not have started yet, and a background process may write more.
    assert_eq!(output.collect(Duration::ZERO), written);
    for _ in 0..100 {
        writer.write_all(b"more").unwrap();
        assert!(output.collect(Duration::ZERO).ends_with(b"more"));
    }
    drop(writer);
    assert!(output.collect(Duration::from_secs(60)).len() >= written.len());
}

#[test]
fn command_is_killed_with_its_children_after_the_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let began = Instant::now();
    let command = format!("sleep 600 & echo $! > {}.new; mv {0}.new {0}; wait", pid.display());
    // A busy machine may kill the command before it started a child: then the timeout is raised.
    for timeout_s in [0, 1, 4, 16, 64] {
        let timeout = Duration::from_secs(timeout_s).max(Duration::from_millis(500));
        let step = run(&command, timeout);
        let error = format!("killed after {timeout_s} s");
        assert_eq!((step.exit_status, step.error), (None, Some(error)));
        if pid.exists() {
            break;
        }
    }
    assert!(began.elapsed() < Duration::from_secs(300));
    wait_for_the_end_of(std::fs::read_to_string(pid).unwrap().trim());
}

#[test]
fn command_is_killed_when_the_daemon_stops() {
    let (stopping, began) = (CancellationToken::new(), Instant::now());
    let hook = Hook { stopping: Some(&stopping), ..hook("sleep 600") };
    let step = std::thread::scope(|scope| {
        let running = scope.spawn(|| hook.run());
        stopping.cancel();
        running.join().unwrap()
    });
    assert_eq!(step.error.as_deref(), Some("killed: the daemon is stopping"));
    assert!(began.elapsed() < Duration::from_secs(300));
}

#[test]
fn command_is_killed_with_its_children_when_the_daemon_dies() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let command = format!("sleep 600 & echo $! > {}; echo >&2; wait", pid.display());
    let mut child = hook(&command).spawn().unwrap();
    let stdin = child.stdin.take();
    child.stderr.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    drop(stdin);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    wait_for_the_end_of(std::fs::read_to_string(pid).unwrap().trim());
}

#[test]
fn background_process_holds_the_lock_and_is_not_killed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    std::fs::write(&path, "").unwrap();
    let lock = File::open(&path).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let (pid, go) = (dir.path().join("pid"), dir.path().join("go"));
    rustix::fs::mkfifoat(rustix::fs::CWD, &go, 0o600.into()).unwrap();
    let command = format!("(read -r _ < {}) 2>&- & echo $! > {}", go.display(), pid.display());
    let hook = Hook { lock: Some(&lock), ..hook(&command) };
    assert_eq!(hook.run().exit_status, Some(0));
    drop(lock);
    let other = File::open(&path).unwrap();
    assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err(), "the lock is free");
    std::fs::write(&go, "\n").unwrap();
    flock(&other, FlockOperation::LockExclusive).unwrap();
}
