//! The command line of `blockd`. What is given here wins over the configuration file, which wins over
//! defaults.

use crate::{
    config::{LogFormat, NbdAddress},
    generate::Generate,
};
use clap::Parser;
use std::path::PathBuf;

/// Serves volumes over NBD, tracks what is written to them, and backs them up to object storage.
#[derive(Parser, Debug, Default, Clone)]
#[command(
    name = "blockd",
    version,
    about = "Serves volumes over NBD, tracks what is written to them, and backs them up to object storage.",
    after_long_help = CONFIG_HELP
)]
pub struct Cli {
    /// Directory that holds everything the daemon keeps: volumes, database, sockets [default:
    /// /var/lib/blockd]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Configuration file, TOML [default: /etc/blockd/blockd.toml, which need not exist]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// A further place to serve NBD at: tcp://ADDR:PORT or unix:///PATH; may be repeated (DIR/nbd.sock is
    /// always served)
    #[arg(long = "nbd-listen", value_name = "URL")]
    pub nbd_listen: Vec<NbdAddress>,

    /// How log lines look, and where they go [default: auto]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// What is logged: error, warn, info, debug, trace, or a filter such as `info,blockd_cloud=debug`
    /// [default: info]
    #[arg(long, value_name = "LEVEL", env = "BLOCKD_LOG")]
    pub log_level: Option<String>,

    /// Treat the last stop as a power cut, whatever the boot id says: for data directories restored from an
    /// image
    #[arg(long)]
    pub after_power_loss: bool,

    /// Check the files of these volumes (of all, if none is named) without starting, change nothing, and
    /// exit: with 0 if nothing is wrong, with 1 if something is, with 3 if they cannot be checked because a
    /// daemon runs or one is not there
    #[arg(long, value_name = "VOLUME", num_args = 0.., conflicts_with = "check_config")]
    pub check_volumes: Option<Vec<String>>,

    /// With --check-volumes VOLUME: write what can be read of the volume to this new file; what cannot be
    /// read is zero in it and listed
    #[arg(long, value_name = "IMAGE", requires = "check_volumes")]
    pub export: Option<PathBuf>,

    /// With --export: name or id of a snapshot [default: the latest content]
    #[arg(long, requires = "export")]
    pub snapshot: Option<String>,

    /// Say whether this program could start on the data directory, with the configuration, the database and
    /// the volumes that are there, change nothing, and exit: with 0 if it could, with 1 if not, with 3 if
    /// that cannot be told; another blockd may run there
    #[arg(long, conflicts_with_all = ["check_config", "check_volumes"])]
    pub check_start: bool,

    /// With --check-volumes: print what was found as one JSON document
    #[arg(long, requires = "check_volumes")]
    pub json: bool,

    /// What the daemon starts to freeze and thaw the filesystem that is mounted there; not for people
    #[arg(long, hide = true, value_name = "MOUNT")]
    pub hold_filesystem: Option<PathBuf>,

    /// How long it stays frozen at most, in milliseconds
    #[arg(long, hide = true, default_value_t = 0)]
    pub hold_timeout_ms: u64,

    /// Print what packages bring beside the program, and exit; not for people
    #[arg(long, hide = true, value_name = "WHAT")]
    pub generate: Option<Generate>,

    /// Print the configuration that would be used, as TOML, load the certificates and keys that it names, and
    /// exit: with 0, or with 2 if something of it cannot be used; of the addresses of webhooks only the hosts
    /// are shown
    #[arg(long)]
    pub check_config: bool,
}

const CONFIG_HELP: &str = "\
Keys of the configuration file (defaults in brackets):
  data_dir              directory of everything the daemon keeps [\"/var/lib/blockd\"]
  nbd_listen            further NBD addresses, a list of \"tcp://ADDR:PORT\" and \"unix:///PATH\" [[]]
  log_format            \"text\" or \"json\" to stderr, \"journal\" = records with fields to the journal of systemd, \"auto\" =
                        journal if stderr goes there, else text [\"auto\"]
  log_level             level or filter of the log [\"info\"]
  full_every            every how many backups of a volume to a credential one is full [7]
  task_concurrency      backups and restores that move data at once; the others wait [2]
  task_priority         what they take: \"low\" = what guests and others leave, \"normal\" = as others, but less while
                        guests have to wait, \"high\" = all they can get [\"low\"]
  hydration_limit_bytes_per_s  what the hydration of one lazy volume may fetch in a second; 0 = no limit [0]
  hydration_concurrency  fetches of at most 4 MiB that the hydration of one lazy volume makes at once [8]
  lazy_stall_ms         time that reads of a lazy volume wait for a store that is gone, if they are to stall [600000]
  lazy_error_ms         the same if they are to fail [20000]
  limit_upload          what all tasks together send in a second at most, by the time of day, such as
                        \"20MiB@08:00-18:00,100MiB\"; credentials and tasks have limits of their own besides []
  limit_download        the same for what they receive []
  limit_time_zone       the time zone of the times in these limits, such as \"Europe/Berlin\" [UTC]
  upload_concurrency    packs that one backup uploads at once [4]
  download_concurrency  requests that one restore makes at once [4]
  merge_limit_bytes_per_s  what merging layers may copy in a second; 0 = no limit [0]
  cpu_threads           threads that compress and seal; 0 = one per core [0]
  ring_threads          threads that serve NBD sockets; 0 = one per core [0]
  nbd_workers           threads for NBD requests that must wait for storage, and as many for syncs [8]
  nbd_connections       NBD connections at once, up to 64 of them for unix sockets only [1024]
  nbd_connections_per_volume      NBD connections of one volume at once, over TCP [64]
  nbd_handshake_timeout_ms        time that an NBD client has to choose its volume, a TLS handshake included [10000]
  nbd_idle_timeout_ms             time after which a TCP connection of NBD with nothing to do is closed; 0 = never [0]
  nbd_connection_in_flight_bytes  payload that one NBD connection may have in flight [67108864]
  nbd_in_flight_bytes             payload that all NBD connections together may have in flight [536870912]
  nbd_tls               TCP over TLS: \"off\", \"allow\", \"require\" [\"require\" with a certificate, else \"off\"]
  nbd_tls_certificate   the server's certificate, and those that lead to its authority, PEM []
  nbd_tls_key           its private key, PEM; nobody else may be able to read it []
  nbd_tls_client_ca     authorities of client certificates, PEM; if set, clients must have one []
  nbd_tls_client_crl    their revocation lists, PEM; then there must be one of each authority []
  nbd_allow_plaintext   serve TCP addresses that other hosts can reach without requiring TLS [false]
  store_attempts        attempts of one request to an object store [6]
  store_timeout_ms      time that one request to an object store may take, before its body [60000]
  store_answer_ms       time that a command such as `cloudsnap restore` waits for the store's answer before it begins; then it
                        fails, and nothing is done [30000]
  stop_timeout_ms       time that a stop gives running tasks and clients to come to rest [30000]
  gc_every_hours        every how many hours what abandoned backups left in the stores is deleted; 0 = never [24]
  verify_bytes_per_day  bytes that background verification reads a day; 0 = none [1073741824]
  task_history          finished tasks that `cloudsnap status` remembers [1000]
  core_dumps            the kernel may write cores of blockd when it crashes, and who runs as its user look into its memory: there
                        are keys in it [false]
  [browse]              table: looking into snapshots as files, with the keys that follow here
  mountpoint            (browse) where snapshots are mounted as files from the start on []
  credentials           (browse) whose cloud snapshots are shown there; of all credentials if empty [[]]
  allow_other           (browse) other users may look, by the modes and owners that are shown; needs root, or
                        user_allow_other in /etc/fuse.conf [false]
  cache_dir             (browse) where pieces of cloud snapshots are cached, sealed as they are stored [DATA_DIR/cache]
  cache_bytes           (browse) most bytes that the cache takes [4294967296]
  stall_timeout_ms      (browse) time that a reader waits for a store before it is given an error [30000]
  refresh_ms            (browse) how often stores are listed at most, while somebody looks [10000]
  [metrics]             table: telling metrics to Prometheus, with the key that follows here
  listen                (metrics) ADDR:PORT where /metrics, /healthz and /readyz are served in clear and to everybody, beside
                        the control socket; they tell names of volumes and credentials, and no secrets []
  [control]             table: driving blockd from elsewhere, and as somebody else, with the keys that follow here
  listen                (control) ADDR:PORT where the control API is served with certificates on both sides []
  certificate           (control) the server's certificate, and those that lead to its authority, PEM []
  key                   (control) its private key, PEM; nobody else may be able to read it []
  client_ca             (control) authorities of client certificates, PEM []
  client_crl            (control) their revocation lists, PEM; then there must be one of each authority []
  sockets               (control) [[control.sockets]] with path, group and role: a further socket for a group [[]]
  [control.roles]       table: NAME = \"read-only\", \"operator\" or \"admin\", the names in client certificates; `*` stands for
                        every other one [empty]
  [secrets]             table: secrets that blockd reads when it needs them (`--…-from` of `blockctl credentials create`), with
                        the keys that follow here
  cache_s               (secrets) longest time for which the output of a program is used [3600]
  wait_s                (secrets) longest time that a task waits at its start for a secret that cannot be read [120]
  command_timeout_ms    (secrets) time limit of a program that prints a secret [10000]
  file_dir              (secrets) the directory of `file:` and `command:`; others may not read its files nor write to its
                        programs [\"/etc/blockd/secrets\"]
  [nbd_access]          table, at the end: VOLUME = [\"NAME\", …], the names in client certificates that may have it over
                        TCP; `*` stands for any characters; volumes that are not listed are for all [empty]
  [[webhook]]           tables, at the end: receivers of events, with these keys
  name                  (webhook) name in the log, in metrics and in `blockctl status`
  url                   (webhook) https://HOST/PATH; http:// only to this host, unless allow_http is set
  kinds                 (webhook) kinds of events, such as [\"*-failed\", \"damage-found\"]; `*` matches any characters [all]
  min_severity          (webhook) lowest severity: \"info\", \"warning\", \"error\" [\"info\"]
  secret                (webhook) reference to the secret that signs deliveries, such as \"file:/etc/blockd/secrets/webhook\" []
  allow_http            (webhook) allow a receiver on another host without TLS [false]
  timeout_ms            (webhook) time limit of one attempt [10000]

On SIGHUP this file is read again: roles, [nbd_access], certificates and log_level hold from then on, what takes a restart is named in the log,
and one that cannot be changes nothing. Certificates are read again within a minute after their files changed as well.

Environment:
  BLOCKD_LOG             as --log-level
  CREDENTIALS_DIRECTORY  if it holds a file blockd.key (32 bytes), that is the key which seals stored secrets; the
                         others are what `systemd:NAME` refers to
  JOURNAL_STREAM         says whether stderr goes to the journal of systemd
  NOTIFY_SOCKET          readiness and stopping are told to systemd there
  LISTEN_PID, LISTEN_FDS  sockets of the control API that systemd made are served, if their addresses are configured
  WATCHDOG_USEC          systemd is told three times within this time that the daemon is alive

Exit status: 0 stopped cleanly, 1 failed, 2 the command line or the configuration is wrong. With --check-volumes: 0 nothing
is wrong, 1 something is wrong with a volume or the database, 2 as before, 3 nothing was checked. With --check-start: 0 it
could start, 1 it could not, 2 as before, 3 that cannot be told.";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_configuration_key_is_in_the_help() {
        let printed = crate::config::Config::default().to_toml();
        for line in printed.lines().filter(|line| !line.starts_with('#')) {
            let key = line.split(" =").next().unwrap();
            assert!(CONFIG_HELP.contains(&format!("\n  {key} ")), "{key} is not documented");
        }
    }
}
