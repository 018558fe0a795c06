//! The examples for databases: real servers under load on volumes of a consistency group, frozen together,
//! restored, and checked by their own tools. Skipped where a server is missing or filesystems cannot be
//! mounted.

use crate::harness::{
    Bed, Ctl, Daemon,
    database::{
        Disk, MYSQL, POSTGRES, as_user, postgres_programs, programs, run, run_ledger_client, start_server,
    },
    process::{Process, repository},
    replay::filesystem::{Filesystem, missing, with_private_mounts},
    skip, time_of_another_half_day, wait_until,
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

/// Number of ledger clients.
const CLIENTS: usize = 3;
/// Entries of each ledger before the freeze.
const ENTRIES_BEFORE: u64 = 50;
/// Maximum timeout of the commands around a freeze: a slow machine takes minutes for a checkpoint under load.
const MAX_COMMAND_TIMEOUT: &str = "10m";

/// Runs a test in a mount namespace of its own, or prints why it is skipped.
fn with_mounts(
    name: &str,
    programs: Result<Vec<PathBuf>, String>,
    act: impl FnOnce(&Bed, &[PathBuf]) + Send,
) {
    let programs = match programs {
        Ok(programs) => programs,
        Err(program) => return skip(name, &format!("{program}: install the Debian package of the database")),
    };
    if let Some(what) = missing(Filesystem::Ext4) {
        return skip(name, &what);
    }
    let act = || {
        let bed = Bed::on_disk();
        // The database's user needs access to the directory.
        fs::set_permissions(bed.dir(), fs::Permissions::from_mode(0o755)).unwrap();
        if let Some(what) = Filesystem::Ext4.mount_failure(bed.dir()) {
            return skip(name, &what);
        }
        act(&bed, &programs);
    };
    if let Err(what) = with_private_mounts(act) {
        skip(name, &what);
    }
}

/// Paths of a database's two volumes and its socket.
struct Paths {
    data: PathBuf,
    log: PathBuf,
    run: PathBuf,
}

impl Paths {
    fn new(bed: &Bed, user: &str) -> Self {
        let this = Self { data: bed.path("data-of"), log: bed.path("log-of"), run: bed.path("run") };
        fs::create_dir(&this.run).unwrap();
        this.give(&this.run, user);
        this
    }

    /// Mounts the volumes; new ones are given to the user.
    fn mount(&self, daemon: &Daemon, volumes: [&str; 2], new_for: Option<&str>) -> [Disk; 2] {
        let disks = [(&self.data, volumes[0]), (&self.log, volumes[1])];
        let disks = disks.map(|(at, volume)| Disk::mount(daemon, volume, at, new_for.is_some()));
        if let Some(user) = new_for {
            for top in [&self.data, &self.log] {
                let dir = top.join("files");
                fs::create_dir(&dir).unwrap();
                fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
                self.give(&dir, user);
            }
        }
        disks
    }

    fn give(&self, path: &Path, user: &str) {
        run(Command::new("chown").arg(format!("{user}:")).arg(path));
    }
}

/// Returns the answered counts of the ledgers at a point in time.
fn answered_of(ledgers: &[AtomicU64]) -> Vec<u64> {
    ledgers.iter().map(|ledger| ledger.load(Ordering::SeqCst)).collect()
}

/// Checks ledgers, given as lines `CLIENT COUNT LAST`: they have all entries answered before, none requested
/// after the end, and no gaps.
fn assert_ledgers(found: &str, before: &[u64], after: &[u64]) {
    let lines: Vec<Vec<u64>> = found
        .lines()
        .map(|line| line.split(['|', '\t', ' ']).map(|number| number.parse().unwrap()).collect())
        .collect();
    assert_eq!(lines.len(), CLIENTS, "{found}");
    for (nth, line) in lines.iter().enumerate() {
        let [client, count, last] = line[..] else { panic!("{found}") };
        assert_eq!((client, count), (nth as u64, last), "entries are missing: {found}");
        // One more request may have been in flight.
        assert!(
            before[nth] <= last && last <= after[nth] + 1,
            "client {nth} has {last} entries; {} were answered before, {} after",
            before[nth],
            after[nth]
        );
    }
}

/// Runs `act` while the ledger clients run, after each has some entries. Returns the answered counts before
/// and after.
fn under_load<T>(
    client: impl Fn() -> Command + Sync,
    statement: impl Fn(usize, u64) -> String + Sync,
    act: impl FnOnce() -> T,
) -> (T, Vec<u64>, Vec<u64>) {
    let ledgers: Vec<AtomicU64> = (0..CLIENTS).map(|_| AtomicU64::new(0)).collect();
    let stop = AtomicBool::new(false);
    /// Stops the clients on drop, so also on a panic.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    thread::scope(|scope| {
        let stop_at_end = Stop(&stop);
        let mut running = Vec::new();
        for (nth, ledger) in ledgers.iter().enumerate() {
            let (client, statement, stop) = (&client, &statement, &stop);
            running.push(scope.spawn(move || {
                run_ledger_client(&mut client(), |number| statement(nth, number), stop, ledger);
            }));
        }
        let wait_for_more = |more: u64| {
            let wanted: Vec<u64> = answered_of(&ledgers).iter().map(|count| count + more).collect();
            wait_until("the ledgers to grow", || {
                assert!(!running.iter().any(|client| client.is_finished()), "a client has ended");
                answered_of(&ledgers).iter().zip(&wanted).all(|(now, wanted)| now >= wanted)
            });
        };
        wait_for_more(ENTRIES_BEFORE);
        let before = answered_of(&ledgers);
        let done = act();
        let after = answered_of(&ledgers);
        // The restored ledgers must not contain later entries.
        wait_for_more(2);
        drop(stop_at_end);
        (done, before, after)
    })
}

/// Creates a schedule, runs it once and waits for its runs, which must succeed. Returns the history.
fn run_scheduled(ctl: &Ctl, of: &[&str], runs: usize) -> Value {
    let time = time_of_another_half_day();
    let create = ["cloudsnap", "schedules", "create", "--daily", &time];
    let schedule = ctl.json(&[&create[..], of].concat());
    let uuid = schedule["scheduleId"].as_str().unwrap();
    ctl.json(&["cloudsnap", "schedules", "run-now", "--uuid", uuid]);
    let history = || ctl.json(&["cloudsnap", "history", "--uuid", uuid]);
    wait_until("the runs to end", || {
        let document = history();
        let runs_of = document["items"].as_array().unwrap().clone();
        assert!(
            runs_of.iter().all(|run| run["state"] != "failed" && run["reason"].is_null()),
            "{document:#}"
        );
        runs_of.iter().filter(|run| run["state"] == "done").count() == runs
    });
    for task in ctl.json(&["cloudsnap", "status"])["items"].as_array().unwrap() {
        let steps = task["quiesce"]["steps"].as_array().unwrap();
        assert!(!steps.is_empty() && steps.iter().all(|step| step["exitStatus"] == 0), "{task:#}");
    }
    history()
}

/// PostgreSQL on two volumes, with the programs of the newest installed version.
struct Postgres<'a> {
    paths: Paths,
    log: PathBuf,
    programs: &'a [PathBuf],
}

impl<'a> Postgres<'a> {
    fn new(bed: &Bed, programs: &'a [PathBuf]) -> Self {
        Self { paths: Paths::new(bed, POSTGRES), log: bed.path("postgres.log"), programs }
    }

    fn program(&self, name: &str) -> &Path {
        self.programs.iter().find(|path| path.ends_with(name)).expect(name)
    }

    fn data(&self) -> PathBuf {
        self.paths.data.join("files/main")
    }

    fn init(&self) {
        let mut command = as_user(POSTGRES, self.program("initdb"));
        command.args(["--auth", "trust", "--data-checksums", "--pgdata"]).arg(self.data());
        run(command.arg("--waldir").arg(self.paths.log.join("files/main")));
    }

    /// Returns a command with the environment of a client.
    fn as_client(&self, program: &Path) -> Command {
        let mut command = as_user(POSTGRES, program);
        command.env("PGHOST", &self.paths.run).env("PGDATABASE", "postgres").env("PGUSER", POSTGRES);
        command
    }

    fn client(&self, name: &str) -> Command {
        self.as_client(self.program(name))
    }

    fn start(&self) -> Process {
        let mut command = as_user(POSTGRES, self.program("postgres"));
        command.arg("-D").arg(self.data()).arg("-k").arg(&self.paths.run).args(["-c", "listen_addresses="]);
        start_server(&mut command, &self.log, || {
            let mut command = self.client("psql");
            command.args(["--command", "SELECT 1"]);
            command
        })
    }

    fn ask(&self, sql: &str) -> String {
        let plain =
            ["--no-psqlrc", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1", "--command", sql];
        run(self.client("psql").args(plain))
    }

    /// Returns a client that prints each reply at once.
    fn ledger_client(&self) -> Command {
        let mut command = self.as_client(Path::new("stdbuf"));
        command.arg("--output=L").arg(self.program("psql"));
        command.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"]);
        command
    }
}

#[test]
fn postgresql_is_restored_from_a_backup_made_under_load() {
    let name = "postgresql_is_restored_from_a_backup_made_under_load";
    with_mounts(name, postgres_programs(), |bed, programs| {
        let postgres = Postgres::new(bed, programs);
        let paths = &postgres.paths;
        let daemon = bed.daemon("a").start();
        let ctl = daemon.ctl();
        for (volume, size) in [("pgdata", "768MiB"), ("pgwal", "512MiB")] {
            ctl.json(&["volume", "create", volume, "--size", size, "--group", "pg"]);
        }
        ctl.add_local("nas", bed.store("store").dir(), Some("planted"));
        let disks = paths.mount(&daemon, ["pgdata", "pgwal"], Some(POSTGRES));
        postgres.init();
        let server = postgres.start();
        postgres.ask("CREATE TABLE ledger (client int, entry int, PRIMARY KEY (client, entry))");
        run(postgres.client("pgbench").args(["--initialize", "--quiet", "--scale", "5"]));
        let mut bench = postgres.client("pgbench");
        bench.args(["--client", "3", "--time", "3600"]);
        let bench = Process::start_logged(&mut bench, &bed.path("pgbench.log"));
        let (tasks, before, after) = under_load(
            || postgres.ledger_client(),
            |client, entry| format!("INSERT INTO ledger VALUES ({client}, {entry}) RETURNING entry;\n"),
            || {
                // The example's command runs as the server's user, by the rule of the schedule's group.
                let command = repository().join("examples/postgresql/checkpoint");
                let command = format!("PGHOST={} {}", paths.run.display(), command.display());
                let limits = ["--user", POSTGRES, "--command-timeout", MAX_COMMAND_TIMEOUT];
                let create = ["rule", "create", "pg", "--pre-command", command.as_str()];
                ctl.json(&[&create[..], &limits[..]].concat());
                ctl.json(&["rule", "assign", "pg", "--group", "pg"]);
                run_scheduled(&ctl, &["--group", "pg", "--cred-id", "nas"], 2)
            },
        );
        bench.end(Signal::KILL);
        let checkpoints = fs::read_to_string(&postgres.log).unwrap();
        assert!(checkpoints.contains("checkpoint starting: immediate force wait"), "{checkpoints}");
        // An immediate shutdown, as after a power cut.
        server.end(Signal::QUIT);
        disks.into_iter().for_each(Disk::unmount);

        assert_eq!(ctl.done_cloudsnaps().len(), 2, "{tasks:#}");
        for volume in ["pgdata", "pgwal"] {
            restore(&ctl, volume);
        }
        let disks = paths.mount(&daemon, ["pgdata-restored", "pgwal-restored"], None);
        let server = postgres.start();
        let found =
            postgres.ask("SELECT client, count(*), max(entry) FROM ledger GROUP BY client ORDER BY client");
        assert_ledgers(&found, &before, &after);
        // pgbench adds each delta of its history to an account, a teller and a branch.
        let sums = postgres.ask(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
                        (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history)",
        );
        let sums: Vec<&str> = sums.trim().split('|').collect();
        assert!(sums.len() == 4 && sums.iter().all(|sum| *sum == sums[0] && !sum.is_empty()), "{sums:?}");
        let checks = ["--all", "--install-missing", "--heapallindexed", "--parent-check"];
        run(postgres.client("pg_amcheck").args(checks));
        server.end(Signal::INT);
        let checksums = postgres.program("pg_checksums");
        run(as_user(POSTGRES, checksums).arg("--check").arg("--pgdata").arg(postgres.data()));
        disks.into_iter().for_each(Disk::unmount);
    });
}

/// Restores the backup of a volume.
fn restore(ctl: &Ctl, volume: &str) {
    let id = ctl.volume_id(volume);
    let snaps = ctl.done_cloudsnaps();
    let snap = snaps.iter().find(|snap| snap.contains(&format!("/{id}-"))).unwrap();
    ctl.restore(snap, &format!("{volume}-restored"));
}

/// MariaDB on two volumes.
struct MariaDb<'a> {
    paths: Paths,
    socket: PathBuf,
    defaults: String,
    log: PathBuf,
    programs: &'a [PathBuf],
}

impl<'a> MariaDb<'a> {
    fn new(bed: &Bed, programs: &'a [PathBuf]) -> Self {
        let paths = Paths::new(bed, MYSQL);
        let socket = paths.run.join("db.sock");
        let options = bed.path("options.cnf");
        let text = format!(
            "[mariadbd]\ndatadir={data}\ninnodb_log_group_home_dir={log}\nsocket={socket}\npid-file={run}/db.pid\n\
             skip-networking\ninnodb_log_file_size=32M\ninnodb_buffer_pool_size=64M\n",
            data = paths.data.join("files").display(),
            log = paths.log.join("files").display(),
            socket = socket.display(),
            run = paths.run.display(),
        );
        fs::write(&options, text).unwrap();
        let defaults = format!("--defaults-file={}", options.display());
        Self { paths, socket, defaults, log: bed.path("mariadb.log"), programs }
    }

    fn program(&self, name: &str) -> &Path {
        self.programs.iter().find(|path| path.ends_with(name)).expect(name)
    }

    fn install(&self) {
        let options = [&self.defaults, "--auth-root-authentication-method=normal", "--skip-test-db"];
        run(as_user(MYSQL, self.program("mariadb-install-db")).args(options));
    }

    fn client(&self, name: &str) -> Command {
        let mut command = as_user(MYSQL, self.program(name));
        command.args(["--no-defaults", "--user=root"]).arg(format!("--socket={}", self.socket.display()));
        command
    }

    fn ask(&self, sql: &str) -> String {
        run(self.client("mariadb").args(["--batch", "--skip-column-names", "--execute", sql]))
    }

    fn start(&self) -> Process {
        let mut command = as_user(MYSQL, self.program("mariadbd"));
        start_server(command.arg(&self.defaults), &self.log, || {
            let mut command = self.client("mariadb");
            command.args(["--execute", "SELECT 1"]);
            command
        })
    }

    /// Returns the example's command that locks all tables.
    fn hold(&self, bed: &Bed) -> String {
        format!(
            "HOLD_DIR={} SYNC_DIR={} MARIADB_OPTS='--no-defaults --user=root --socket={}' {}",
            bed.dir().display(),
            self.paths.data.display(),
            self.socket.display(),
            repository().join("examples/mariadb/hold").display()
        )
    }
}

#[test]
fn mariadb_is_restored_from_a_snapshot_taken_under_load() {
    let name = "mariadb_is_restored_from_a_snapshot_taken_under_load";
    let wanted = ["mariadb-install-db", "mariadbd", "mariadb", "mariadb-check"];
    with_mounts(name, programs(&["/usr/bin", "/usr/sbin"], &wanted), |bed, programs| {
        let mariadb = MariaDb::new(bed, programs);
        let paths = &mariadb.paths;
        let daemon = bed.daemon("a").start();
        let ctl = daemon.ctl();
        for (volume, size) in [("dbdata", "768MiB"), ("dblog", "384MiB")] {
            ctl.json(&["volume", "create", volume, "--size", size, "--group", "db"]);
        }
        ctl.add_local("nas", bed.store("store").dir(), Some("planted"));
        let disks = paths.mount(&daemon, ["dbdata", "dblog"], Some(MYSQL));
        mariadb.install();
        let server = mariadb.start();
        mariadb.ask(
            "CREATE DATABASE shop; \
             CREATE TABLE shop.ledger (client INT, entry INT, PRIMARY KEY (client, entry)) ENGINE=InnoDB; \
             CREATE TABLE shop.aside (client INT, entry INT, KEY (client, entry)) ENGINE=MyISAM;",
        );
        let hold = mariadb.hold(bed);
        let (_, before, after) = under_load(
            || {
                let mut command = mariadb.client("mariadb");
                command.args(["--batch", "--skip-column-names", "--unbuffered", "shop"]);
                command
            },
            |client, entry| {
                format!(
                    "INSERT INTO aside VALUES ({client}, {entry}); INSERT INTO ledger VALUES ({client}, {entry}); SELECT {entry};\n"
                )
            },
            || {
                let (begin, end) = (format!("{hold} begin"), format!("{hold} end"));
                let commands = ["--pre-command", begin.as_str(), "--post-command", end.as_str()];
                let create = ["rule", "create", "db", "--command-timeout", MAX_COMMAND_TIMEOUT];
                ctl.json(&[&create[..], &commands[..]].concat());
                // The backups of the schedule and its local snapshots have the same freeze.
                let of = ["--group", "db", "--rule", "db", "--cred-id", "nas", "--local-keep-last", "2"];
                run_scheduled(&ctl, &of, 4)
            },
        );
        server.end(Signal::KILL);
        disks.into_iter().for_each(Disk::unmount);

        // One volume comes from the store, the other one from the local snapshot of the same freeze.
        restore(&ctl, "dbdata");
        let local = ctl.json(&["snapshot", "list", "dblog"])["items"][0]["name"].as_str().unwrap().to_owned();
        assert!(local.starts_with("sched-"), "{local}");
        ctl.json(&["volume", "clone", "dblog-restored", "--from", &format!("dblog@{local}")]);
        let disks = paths.mount(&daemon, ["dbdata-restored", "dblog-restored"], None);
        let server = mariadb.start();
        let ledgers = |table: &str| {
            mariadb.ask(&format!(
                "SELECT client, COUNT(*), MAX(entry) FROM shop.{table} GROUP BY client ORDER BY client"
            ))
        };
        assert_ledgers(&ledgers("ledger"), &before, &after);
        // The lock keeps tables consistent that do not recover from a crash.
        let checked = run(mariadb.client("mariadb-check").args(["--all-databases", "--check", "--extended"]));
        for line in checked.lines() {
            assert!(line.trim_end().ends_with("OK"), "{checked}");
        }
        assert!(checked.contains("shop.aside"), "{checked}");
        assert_ledgers(&ledgers("aside"), &before, &after);
        server.end(Signal::TERM);
        disks.into_iter().for_each(Disk::unmount);
    });
}
