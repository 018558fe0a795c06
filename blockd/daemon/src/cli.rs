//! Command line of `blockd`. Options override the configuration file, which overrides the defaults.

use crate::{
    config::values::{LogFormat, NbdAddress},
    generate::Generate,
};
use clap::Parser;
use std::path::PathBuf;

/// Serves volumes over NBD with changed-block tracking, and backs them up to object storage.
#[derive(Parser, Debug, Default, Clone)]
#[command(
    name = "blockd",
    version,
    about = "Serves volumes over NBD with changed-block tracking, and backs them up to object storage.",
    after_long_help = CONFIG_HELP
)]
pub struct Cli {
    /// Data directory: volumes, database, sockets [default: /var/lib/blockd]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Configuration file, TOML [default: /etc/blockd/blockd.toml, may be missing]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Additional NBD listener: tcp://ADDR:PORT or unix:///PATH; may be repeated (DIR/nbd.sock is always
    /// served)
    #[arg(long = "nbd-listen", value_name = "URL")]
    pub nbd_listen: Vec<NbdAddress>,

    /// Format and destination of log lines [default: auto]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Log level: error, warn, info, debug, trace, or a filter such as `info,blockd_cloud=debug` [default:
    /// info]
    #[arg(long, value_name = "LEVEL", env = "BLOCKD_LOG")]
    pub log_level: Option<String>,

    /// Recover as after a power loss, ignoring the boot id: for data directories restored from an image
    #[arg(long)]
    pub after_power_loss: bool,

    /// Check the files of these volumes (default: all) without starting; read-only. Exit status: 0 sound, 1
    /// problems found, 3 not checked because a daemon is running or a volume does not exist
    #[arg(long, value_name = "VOLUME", num_args = 0.., conflicts_with = "check_config")]
    pub check_volumes: Option<Vec<String>>,

    /// With --check-volumes VOLUME: export the readable content to this new file; unreadable ranges are zero
    /// in it and listed
    #[arg(long, value_name = "IMAGE", requires = "check_volumes")]
    pub export: Option<PathBuf>,

    /// With --export: snapshot name or id [default: the latest content]
    #[arg(long, requires = "export")]
    pub snapshot: Option<String>,

    /// Check whether this program could start on the data directory with its configuration, database and
    /// volumes; read-only, even while another blockd is running. Exit status: 0 yes, 1 no, 3 unknown
    #[arg(long, conflicts_with_all = ["check_config", "check_volumes"])]
    pub check_start: bool,

    /// With --check-volumes: print the report as JSON
    #[arg(long, requires = "check_volumes")]
    pub json: bool,

    /// Internal: freeze and thaw the filesystem mounted there
    #[arg(long, hide = true, value_name = "MOUNT")]
    pub hold_filesystem: Option<PathBuf>,

    /// Internal: timeout of the freeze, in milliseconds
    #[arg(long, hide = true, default_value_t = 0)]
    pub hold_timeout_ms: u64,

    /// Internal: print a generated file of the package, and exit
    #[arg(long, hide = true, value_name = "WHAT")]
    pub generate: Option<Generate>,

    /// Print the effective configuration as TOML, load the certificates and keys that it names, and exit: 0,
    /// or 2 if a part of it is unusable; webhook URLs are shown without their paths
    #[arg(long)]
    pub check_config: bool,
}

const CONFIG_HELP: &str = "\
Keys of the configuration file (defaults in brackets):
  data_dir                data directory [\"/var/lib/blockd\"]
  nbd_listen              additional NBD listeners, a list of \"tcp://ADDR:PORT\"
                          and \"unix:///PATH\" [[]]
  log_format              \"text\" or \"json\" to stderr, \"journal\" = records with
                          fields to the systemd journal, \"auto\" = journal if
                          stderr is connected to it, otherwise text [\"auto\"]
  log_level               log level or filter [\"info\"]
  full_every              every n-th backup of a volume to a credential is full
                          [7]
  task_concurrency        backups and restores that move data concurrently; the
                          others stay Pending [2]
  task_priority           priority of these tasks: \"low\" = only idle CPU and I/O
                          while guests are active, or \"normal\" [\"low\"]
  hydration_limit_bytes_per_s
                          bandwidth limit of the hydration of one lazy volume; 0
                          = unlimited [0]
  drill_limit_bytes_per_s
                          download bandwidth limit of each restore drill; 0 =
                          unlimited [0]
  drill_limit_requests_per_s
                          limit of the requests of each restore drill to the
                          store; 0 = unlimited [0]
  hydration_concurrency   concurrent fetches, of at most 4 MiB each, of the
                          hydration of one lazy volume [8]
  lazy_stall_ms           timeout of reads from an unreachable store, for lazy
                          volumes that stall [600000]
  lazy_error_ms           the same for lazy volumes that fail [20000]
  limit_upload            upload bandwidth limit over all tasks, by time of day,
                          such as \"20MiB@08:00-18:00,100MiB\" (per second);
                          credentials and tasks have further limits []
  limit_download          download bandwidth limit over all tasks []
  limit_time_zone         time zone of the times in these limits, such as
                          \"Europe/Berlin\" [UTC]
  upload_concurrency      maximum of the concurrent pack uploads of one backup;
                          their number follows latency and bandwidth [32]
  download_concurrency    the same for the requests of one restore or
                          verification [32]
  merge_limit_bytes_per_s
                          bandwidth limit of layer merges; 0 = unlimited [0]
  cpu_threads             threads that compress and encrypt, half as many while
                          guests are active; 0 = one per core [0]
  ring_threads            threads that serve NBD sockets; 0 = one per core [0]
  nbd_workers             threads for NBD requests that block on storage, and as
                          many for flushes [8]
  nbd_connections         maximum of NBD connections, up to 64 of them reserved
                          for Unix sockets [1024]
  nbd_connections_per_volume
                          maximum of TCP connections of one volume [64]
  nbd_handshake_timeout_ms
                          timeout of the NBD handshake, including TLS [10000]
  nbd_idle_timeout_ms     idle timeout of NBD connections over TCP; 0 = none [0]
  nbd_connection_in_flight_bytes
                          in-flight payload limit of one NBD connection
                          [67108864]
  nbd_in_flight_bytes     in-flight payload limit of all NBD connections
                          [536870912]
  nbd_tls                 TLS for TCP: \"off\", \"allow\", \"require\" [\"require\" with
                          a certificate, otherwise \"off\"]
  nbd_tls_certificate     server certificate chain, PEM []
  nbd_tls_key             server private key, PEM; readable by its owner only []
  nbd_tls_client_ca       CA certificates for client certificates, PEM; if set,
                          a client certificate is required []
  nbd_tls_client_crl      revocation lists, PEM; if set, one of each CA is
                          required []
  nbd_allow_plaintext     serve TCP addresses that other hosts can reach without
                          requiring TLS [false]
  store_attempts          maximum attempts of one request to an object store [6]
  store_timeout_ms        timeout of one attempt of a store request, plus the
                          time of its body at 64 KiB/s [60000]
  store_answer_ms         timeout of the pre-flight store requests of a command
                          such as `cloudsnap restore`; after it, the command
                          fails without changes [30000]
  stop_timeout_ms         grace period for tasks and clients at shutdown [30000]
  gc_every_hours          interval of garbage collection in the backup
                          locations; 0 = never [24]
  verify_bytes_per_day    bytes that background verification reads a day; 0 =
                          off [1073741824]
  anomaly_policy          unusual changes in a backup: \"off\" = not looked for,
                          \"observe\" = reported, \"protect\" = reported, and no
                          backup of the volume expires until an acknowledgement;
                          label anomaly-policy of a volume [\"protect\"]
  verify_requests_per_day requests of background verification a day [10000]
  proof_max_age_days      age of the last proof of a volume at a location above
                          which status and an event report it; 0 = never [7]
  scrub_bytes_per_day     bytes of local data that the background scrub reads
                          a day; 0 = off [107374182400]
  task_history            finished tasks kept in the history of `cloudsnap
                          status` [1000]
  core_dumps              allow core dumps, and access to the memory of blockd
                          by processes of its user: it holds keys [false]
  [browse]                table: snapshots as files, with these keys
  mountpoint              (browse) mount point of snapshots from the start on []
  credentials             (browse) credentials whose cloud snapshots are shown;
                          empty = all [[]]
  allow_other             (browse) allow other users, subject to the modes and
                          owners shown; requires root, or user_allow_other in
                          /etc/fuse.conf [false]
  cache_dir               (browse) cache of cloud snapshot frames, encrypted as
                          in the store [DATA_DIR/cache]
  cache_bytes             (browse) capacity of the cache [4294967296]
  stall_timeout_ms        (browse) timeout of reads from a store [30000]
  refresh_ms              (browse) minimum interval between listings of a store
                          [10000]
  [prices]                tables [prices.NAME]: prices of the location with the
                          credential NAME, or \"default\" for all others, in
                          amounts such as \"0.005\"; with these keys
  currency                (prices) name of the currency [\"USD\"]
  put_per_1000            (prices) 1,000 PUT requests and parts [\"0\"]
  get_per_1000            (prices) 1,000 GET and HEAD requests [\"0\"]
  list_per_1000           (prices) 1,000 pages of listings [\"0\"]
  delete_per_1000         (prices) 1,000 DELETE requests [\"0\"]
  egress_per_gib          (prices) 1 GiB read from the store [\"0\"]
  storage_per_gib_month   (prices) 1 GiB stored for a month [\"0\"]
  [metrics]               table: metrics for Prometheus, with this key
  listen                  (metrics) ADDR:PORT of /metrics, /healthz and /readyz
                          besides the control socket, in clear text and without
                          authentication; names of volumes and credentials are
                          visible, secrets are not []
  [control]               table: remote and delegated access to the control API,
                          with these keys
  listen                  (control) ADDR:PORT of the control API over TLS with
                          client certificates []
  certificate             (control) server certificate chain, PEM []
  key                     (control) server private key, PEM; readable by its
                          owner only []
  client_ca               (control) CA certificates for client certificates, PEM
                          []
  client_crl              (control) revocation lists, PEM; if set, one of each
                          CA is required []
  sockets                 (control) [[control.sockets]] with path, group and
                          role: an additional socket for a group [[]]
  [control.roles]         table: NAME = \"read-only\", \"operator\" or \"admin\", by
                          name in the client certificate; `*` matches every
                          other name [empty]
  [secrets]               table: external secrets (`--…-from` of `blockctl
                          credentials create`), with these keys
  cache_s                 (secrets) maximum age of cached program output [3600]
  wait_s                  (secrets) timeout of a task, at its start, for a
                          secret that cannot be read [120]
  command_timeout_ms      (secrets) timeout of a program that prints a secret
                          [10000]
  file_dir                (secrets) directory of `file:` and `command:`; its
                          files must not be readable and its programs not
                          writable by other users [\"/etc/blockd/secrets\"]
  [drill_probes]          tables [drill_probes.NAME]: commands for `blockctl
                          cloudsnap drill run --probe NAME`, with these keys
                          [empty]
  command                 (drill_probes) command line for /bin/sh
  user                    (drill_probes) its user, not root [user nobody]
  access                  (drill_probes) \"mount\", \"device\" or \"socket\": how it
                          gets the clone [\"mount\"]
  timeout_s               (drill_probes) timeout of the command [600]
  memory_limit_bytes      (drill_probes) limit of the address space of each of
                          its processes [4294967296]
  [nbd_access]            table, at the end: VOLUME = [\"NAME\", …], names of
                          client certificates that may use the volume over TCP;
                          `*` matches any characters; volumes that are not
                          listed are open to all [empty]
  [[webhook]]             tables, at the end: receivers of events, with these
                          keys
  name                    (webhook) name in the log, in metrics and in `blockctl
                          status`
  url                     (webhook) https://HOST/PATH; http:// only to this
                          host, unless allow_http is set
  kinds                   (webhook) kinds of events, such as [\"*-failed\",
                          \"damage-found\"]; `*` matches any characters [all]
  min_severity            (webhook) lowest severity: \"info\", \"warning\", \"error\"
                          [\"info\"]
  secret                  (webhook) reference to the secret that signs
                          deliveries, such as \"file:/etc/blockd/secrets/webhook\"
                          []
  allow_http              (webhook) allow a receiver on another host without TLS
                          [false]
  timeout_ms              (webhook) timeout of one attempt [10000]

SIGHUP reloads this file: roles, [nbd_access], certificates and log_level take
effect, other changes are logged as requiring a restart, and an invalid file
changes nothing. Changed certificate files are also reloaded within a minute.

Environment:
  BLOCKD_LOG              same as --log-level
  CREDENTIALS_DIRECTORY   its file blockd.key (32 bytes), if present, is the key
                          that encrypts stored secrets; the other files are the
                          targets of `systemd:NAME`
  JOURNAL_STREAM          set by systemd if stderr is connected to the journal
  NOTIFY_SOCKET           socket for readiness and stop notifications to systemd
  LISTEN_PID, LISTEN_FDS  control API sockets passed by systemd; served if their
                          addresses are configured
  WATCHDOG_USEC           watchdog interval of systemd; blockd notifies it three
                          times per interval

Exit status: 0 stopped cleanly, 1 failed, 2 invalid command line or
configuration. With --check-volumes: 0 sound, 1 problems in a volume or the
database, 2 as above, 3 not checked. With --check-start: 0 could start, 1 could
not, 2 as above, 3 unknown.";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_of_the_configuration_fits_80_columns() {
        let wide: Vec<&str> = CONFIG_HELP.lines().filter(|line| line.chars().count() > 80).collect();
        assert_eq!(wide, [""; 0]);
    }

    /// Returns the keys of a table, which the error for an unknown one lists; none of a plain key.
    fn keys_of(table: &str) -> Vec<String> {
        let parsed = toml::from_str::<crate::config::Config>(&format!("{table}\nunknown = 1"));
        let error = parsed.unwrap_err();
        let Some(known) = error.message().strip_prefix("unknown field `unknown`, expected ") else {
            return Vec::new();
        };
        known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn configuration_keys_are_all_in_the_help() {
        let documents = |words: &str| {
            let words: Vec<&str> = words.split(' ').collect();
            CONFIG_HELP
                .lines()
                .any(|line| line.split_whitespace().take(words.len()).eq(words.iter().copied()))
        };
        let (mut tables, mut keys) = (0, 0);
        for key in keys_of("") {
            let forms = [key.clone(), format!("[{key}]"), format!("[[{key}]]")];
            assert!(forms.iter().any(|form| documents(form)), "{key} is not documented");
            for of_table in forms[1..].iter().map(|table| keys_of(table)) {
                tables += usize::from(!of_table.is_empty());
                for inner in of_table {
                    keys += 1;
                    let is_documented =
                        documents(&format!("{inner} ({key})")) || documents(&format!("[{key}.{inner}]"));
                    assert!(is_documented, "{key}.{inner} is not documented");
                }
            }
        }
        assert!(tables >= 5 && keys >= 20, "{keys} keys of {tables} tables");
    }
}
