//! Start check (`blockd --check-start`): reports whether this program could start on a data directory, even
//! while another daemon uses it. It changes nothing and takes no lock; packages run it before they restart
//! the daemon.

use crate::{config::Config, sockets::check_socket_path};
use blockd_api::{
    costs::{DEFAULT_PRICES, Prices},
    with_sources,
};
use blockd_catalog::{CredentialRow, Db};
use blockd_engine::repositories::opening::cannot_be_opened;
use blockd_extent::VolumeId;
use blockd_nbd::TlsIdentity;
use blockd_secrets::Secrets;
use blockd_volume::{Volume, VolumeError};
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// Returns the problems of the files that a configuration names, one line each. TLS files are loaded as at
/// the start.
pub fn check_files(config: &Config) -> Vec<String> {
    let listeners = [("NBD", config.tls_files()), ("the control API", config.control.tls_files())];
    let loaded = listeners.into_iter().filter_map(|(of, files)| Some((of, TlsIdentity::load(files?).err()?)));
    loaded.map(|(of, error)| format!("TLS of {of}: {}", with_sources(&error))).collect()
}

/// Returns the problems that would prevent a start or the opening of a volume, one line each. Damage to
/// volumes that does not depend on the program's version is left to `--check-volumes`.
///
/// # Errors
/// The check itself failed; the error is one line.
pub fn check_start(config: &Config) -> Result<Vec<String>, String> {
    let cannot = |path: &Path, error: &std::io::Error| format!("cannot access {}: {error}", path.display());
    let data_dir = std::path::absolute(&config.data_dir).map_err(|error| cannot(&config.data_dir, &error))?;
    let mut problems = check_files(config);
    for name in ["blockd.sock", "nbd.sock"] {
        problems.extend(check_socket_path(&data_dir.join(name)).err().map(|error| error.to_string()));
    }
    match std::fs::metadata(&data_dir) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Ok(vec![format!("{} is not a directory", data_dir.display())]),
        // The first start creates it.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(problems),
        Err(error) => return Err(cannot(&data_dir, &error)),
    }
    let database = data_dir.join("blockd.db");
    match database.try_exists() {
        Ok(true) => match Db::check_version(&database) {
            Ok(()) => problems.extend(lost_credentials(&data_dir, &database)),
            Err(error) => problems.push(error.to_string()),
        },
        Ok(false) => {}
        Err(error) => return Err(cannot(&database, &error)),
    }
    let volumes = data_dir.join("volumes");
    let entries = match std::fs::read_dir(&volumes) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(problems),
        Err(error) => return Err(cannot(&volumes, &error)),
    };
    for entry in entries {
        let path = entry.map_err(|error| cannot(&volumes, &error))?.path();
        let is_volume = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.parse::<VolumeId>().is_ok());
        // Other damage is not specific to this program's version.
        if is_volume && let Err(error @ VolumeError::NewerFormat { .. }) = Volume::read_identity(&path) {
            problems.push(error.to_string());
        }
    }
    Ok(problems)
}

/// Returns warnings about price tables, one line each: tables without a location, and prices that miss the
/// bytes read.
pub fn price_warnings(config: &Config) -> Vec<String> {
    let database = config.data_dir.join("blockd.db");
    let known = database.exists().then(|| Db::find_credentials(&database).ok()).flatten();
    let mut warnings = Vec::new();
    for (name, prices) in &config.prices {
        let is_known = |rows: &Vec<CredentialRow>| rows.iter().any(|row| row.name == *name);
        if name.as_str() != DEFAULT_PRICES && known.as_ref().is_some_and(|rows| !is_known(rows)) {
            warnings.push(format!("[prices.{name}] applies to no location: no credential has this name"));
        }
        let free = Prices { currency: prices.currency.clone(), ..Prices::default() };
        if *prices == free {
            warnings.push(format!("[prices.{name}] has no price: all amounts are 0"));
        } else if prices.egress_per_gib == free.egress_per_gib {
            warnings.push(format!(
                "[prices.{name}] has no egress_per_gib: costs do not contain the bytes read, which most providers charge"
            ));
        }
    }
    warnings
}

/// Returns the credentials whose secrets cannot be unsealed: a running daemon may hold them in memory, but
/// the next one could not read them.
fn lost_credentials(data_dir: &Path, database: &Path) -> Vec<String> {
    let systemd = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let secrets = Secrets::load(data_dir, systemd.as_deref());
    let rows = Db::find_credentials(database).unwrap_or_default();
    let told = rows.iter().filter_map(|row| {
        let error = cannot_be_opened(&secrets, row)?;
        Some(format!("credential {} could not be used: {error}", row.name))
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> Config {
        Config { data_dir: dir.to_owned(), ..Config::default() }
    }

    fn listing(dir: &Path) -> Vec<(String, u64)> {
        let mut found: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len())
            })
            .collect();
        found.sort();
        found
    }

    #[test]
    fn price_tables_without_effect_are_warnings() {
        let dir = tempfile::tempdir().unwrap();
        let warned = |text: &str| {
            let config: Config = toml::from_str(text).unwrap();
            price_warnings(&Config { data_dir: dir.path().to_owned(), ..config })
        };
        let table = |name: &str, more: &str| format!("[prices.{name}]\nput_per_1000 = \"0.005\"\n{more}");
        let whole = "egress_per_gib = \"0.09\"";
        assert!(warned(&table("s3", whole)).is_empty(), "no database exists");
        drop(Db::open(&dir.path().join("blockd.db")).unwrap());
        assert!(warned(&table("default", whole)).is_empty());
        let unknown = warned(&table("s3", whole));
        assert!(unknown.len() == 1 && unknown[0].contains("applies to no location"), "{unknown:?}");
        let free = warned(&table("default", "egress_per_gib = \"0\""));
        assert!(free.len() == 1 && free[0].contains("no egress_per_gib"), "{free:?}");
        let empty = warned("[prices.default]");
        assert!(empty.len() == 1 && empty[0].contains("all amounts are 0"), "{empty:?}");
    }

    #[test]
    fn newer_formats_are_reported_and_nothing_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_start(&config(&dir.path().join("none"))).unwrap().is_empty());
        assert!(check_start(&config(dir.path())).unwrap().is_empty());
        let path = dir.path().join("blockd.db");
        drop(Db::open(&path).unwrap());
        let id = VolumeId::from_u64(7);
        let volume = dir.path().join("volumes/7");
        std::fs::create_dir(dir.path().join("volumes")).unwrap();
        drop(Volume::create(&volume, id, 1 << 20).unwrap());
        let before = listing(dir.path());
        assert!(check_start(&config(dir.path())).unwrap().is_empty());
        assert_eq!(listing(dir.path()), before, "the check left no files");

        // Written by another program to the WAL, and not checkpointed yet.
        let other = rusqlite::Connection::open(&path).unwrap();
        other.pragma_update(None, "user_version", 9999).unwrap();
        let meta = volume.join("volume.meta");
        let mut bytes = std::fs::read(&meta).unwrap();
        bytes[8..12].copy_from_slice(&9_u32.to_le_bytes());
        std::fs::write(&meta, bytes).unwrap();
        let problems = check_start(&config(dir.path())).unwrap();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems[0].contains("has version 9999") && problems[1].contains("format version 9"),
            "{problems:?}"
        );
        drop(other);
        assert_eq!(check_start(&config(dir.path())).unwrap().len(), 2, "also without another connection");

        std::fs::write(&path, b"no database at all, but long enough to be looked at").unwrap();
        let problem = check_start(&config(dir.path())).unwrap().remove(0);
        assert_eq!(problem.matches("file is not a database").count(), 1, "{problem}");
    }
}
