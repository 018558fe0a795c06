//! The example probes of restore drills, run by hand on the files of real servers. Skipped where a server is
//! missing, or without root.

use crate::harness::{
    Bed,
    database::{MYSQL, POSTGRES, as_user, postgres_programs, programs, run},
    process::repository,
    skip,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Creates the mount point of a clone, which belongs to a database's user.
fn empty_mount(bed: &Bed, user: &str) -> PathBuf {
    fs::set_permissions(bed.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let mount = bed.path("mount");
    fs::create_dir(&mount).unwrap();
    run(Command::new("chown").arg(format!("{user}:")).arg(&mount));
    mount
}

/// Runs a probe with a question.
fn answer(user: &str, probe: &Path, mount: &Path, sql: &str) -> Output {
    as_user(user, probe).env("BLOCKD_DRILL_MOUNT", mount).env("PROBE_SQL", sql).output().unwrap()
}

#[test]
fn postgresql_probe_notices_a_damaged_control_file() {
    let name = "postgresql_probe_notices_a_damaged_control_file";
    let programs = match postgres_programs() {
        Ok(programs) if rustix::process::geteuid().is_root() => programs,
        Ok(_) => return skip(name, "root, which may become the database's user"),
        Err(program) => return skip(name, &format!("{program}: install the Debian package of the database")),
    };
    let bed = Bed::on_disk();
    let mount = empty_mount(&bed, POSTGRES);
    let initdb = programs.iter().find(|path| path.ends_with("initdb")).unwrap();
    run(as_user(POSTGRES, initdb).arg("--pgdata").arg(mount.join("main")));
    // A power cut leaves the lock file of the server.
    fs::write(mount.join("main/postmaster.pid"), "1\n").unwrap();
    // Neither is a standby, nor do its commands and libraries run.
    let ran = mount.join("main/ran");
    let mut configuration = fs::read_to_string(mount.join("main/postgresql.conf")).unwrap();
    for command in ["restore_command", "recovery_end_command", "archive_cleanup_command"] {
        configuration += &format!("{command} = 'touch {}; false'\n", ran.display());
    }
    for kind in ["shared", "session", "local"] {
        configuration += &format!("{kind}_preload_libraries = 'no_such_library'\n");
    }
    configuration += "data_directory = '/nonexistent'\nshared_buffers = '1TB'\n";
    fs::write(mount.join("main/postgresql.conf"), configuration).unwrap();
    for signal in ["recovery.signal", "standby.signal"] {
        fs::write(mount.join("main").join(signal), "").unwrap();
    }
    let probe = repository().join("examples/postgresql/probe");
    let probed = |sql: &str| answer(POSTGRES, &probe, &mount, sql);
    let sound = probed("SELECT 6 * 7");
    let text = String::from_utf8_lossy(&sound.stdout);
    assert!(sound.status.success() && text.trim().ends_with("answers: 42"), "{sound:?}");
    let standby = probed("SELECT pg_is_in_recovery()");
    assert!(String::from_utf8_lossy(&standby.stdout).trim().ends_with("answers: f"), "{standby:?}");
    assert!(!ran.exists());
    assert!(!probed("SELECT no_such_column").status.success());
    // No server is left behind, which would fail the next one without damage.
    assert!(probed("SELECT 1").status.success());
    let control = mount.join("main/global/pg_control");
    let mut bytes = fs::read(&control).unwrap();
    bytes[100] ^= 1;
    fs::write(&control, bytes).unwrap();
    let damaged = probed("SELECT 1");
    let text = String::from_utf8_lossy(&damaged.stderr);
    assert!(!damaged.status.success() && text.trim().ends_with("does not start"), "{damaged:?}");
}

#[test]
fn mariadb_probe_notices_a_damaged_tablespace() {
    let name = "mariadb_probe_notices_a_damaged_tablespace";
    let programs = match programs(&["/usr/bin", "/usr/sbin"], &["mariadb-install-db", "mariadbd", "mariadb"])
    {
        Ok(programs) if rustix::process::geteuid().is_root() => programs,
        Ok(_) => return skip(name, "root, which may become the database's user"),
        Err(program) => return skip(name, &format!("{program}: install the Debian package of the database")),
    };
    let bed = Bed::on_disk();
    let mount = empty_mount(&bed, MYSQL);
    let data = mount.join("mysql");
    run(as_user(MYSQL, &programs[0])
        .args(["--no-defaults", "--skip-test-db"])
        .arg(format!("--datadir={}", data.display())));
    let probe = repository().join("examples/mariadb/probe");
    let probed = |sql: &str| answer(MYSQL, &probe, &mount, sql);
    // The origin is a replica, whose threads would start with the server.
    let replica =
        "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT=9, MASTER_USER='r'; START SLAVE; SELECT 6 * 7";
    let sound = probed(replica);
    let text = String::from_utf8_lossy(&sound.stdout);
    assert!(sound.status.success() && text.trim().ends_with("answers: 42"), "{sound:?}");
    let status = probed("SHOW SLAVE STATUS");
    let text = String::from_utf8_lossy(&status.stdout);
    assert!(
        status.status.success() && text.contains("127.0.0.1") && text.contains("\tNo\tNo\t"),
        "{status:?}"
    );
    assert!(!probed("SELECT no_such_column").status.success());
    // No server is left behind, which would fail the next one without damage.
    assert!(probed("SELECT 1").status.success());
    let tablespace = data.join("ibdata1");
    let mut bytes = fs::read(&tablespace).unwrap();
    bytes[..1 << 20].fill(0xA5);
    fs::write(&tablespace, bytes).unwrap();
    let damaged = probed("SELECT 1");
    let text = String::from_utf8_lossy(&damaged.stderr);
    assert!(!damaged.status.success() && text.trim().ends_with("does not start"), "{damaged:?}");
}
