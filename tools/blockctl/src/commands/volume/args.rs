//! `blockctl volume …`

use super::{image::ImageRef, labels::LabelChanges};
use crate::{
    commands::{
        arguments::{WaitArg, WideArg},
        list_filter::ListFilter,
    },
    confirm::YesArg,
    snapshot_ref::{ExportRef, LocalSnapshot},
    times::parse_seconds,
};
use blockd_api::{
    ByteSize, GroupName, Labels, VolumeName, VolumeRef, anomalies::AnomalyPolicy, attachments::NbdDevice,
    check_volume_size, volumes::Volume,
};
use clap::{
    Args, Subcommand,
    builder::{OsStringValueParser, TypedValueParser},
};

const CREATE_HELP: &str = "\
Sizes: a number and K, M, G or T (or KiB, MiB, GiB, TiB), in powers of 1024; KB, MB, GB and TB are \
powers of 1000.

With --from-image the image is copied over NBD, and blocks of zeroes take no space; this needs the \
host of the daemon. Other formats than raw can be served by `qemu-nbd --read-only`. Stdin needs \
--size. If the copy fails or is interrupted, the volume is deleted.

Examples:
  blockctl volume create db --size 8GiB
  blockctl volume create db --from-image ext4.img
  zstdcat db.img.zst | blockctl volume create db --size 8GiB --from-image -
  blockctl volume create db --from-image 'nbd+unix:///?socket=/run/qemu-nbd.sock'
  blockctl volume create logs --size 1.5TiB --label app=web,tier=log
  blockctl volume create wal --size 1GiB --group shop";

const CLONE_HELP: &str = "\
The clone is writable at once and takes no space until it is written: it shares data with its \
source. Both, and the snapshot, can be changed and deleted in any order. Its first backup is full.

Examples:
  blockctl volume clone db-test db@before-upgrade
  blockctl volume clone db-test --from db@latest
  blockctl volume clone db-test --from 725134927222077463 --label app=test";

const CHECK_HELP: &str = "\
Compares metadata, block sets, lengths and names of data files, and the map of the head with the \
daemon's state. The volume may be in use. Exit status: 0 if it is sound, 1 with a list of errors \
otherwise.

Examples:
  blockctl volume check db
  blockctl -j volume check db";

const SCRUB_HELP: &str = "\
Reads all data of snapshots from the disk, stores missing checksums of its blocks, and compares the \
others. Names the damaged blocks, and their files in ext2, ext3 and ext4; reads of them fail until they \
are repaired or written again. --repair fetches them from a backup that provably has their content: run \
it after damage was found. If it fails, restore the named files. With --budget the next scrub continues \
there.

Examples:
  blockctl volume scrub db --wait
  blockctl volume scrub db --repair --wait
  blockctl volume scrub --budget 100GiB --limit 50MiB";

const LIST_HELP: &str = "\
Examples:
  blockctl volume list
  blockctl volume list --label app=web
  blockctl volume list --group shop
  blockctl volume list --name 'pg*' --sort used
  blockctl volume list -o wide
  blockctl -j volume list";

const INSPECT_HELP: &str = "\
Examples:
  blockctl volume inspect db
  blockctl -j volume inspect 590114184663672482";

const DELETE_HELP: &str = "\
The volume and its local snapshots are deleted at once; its cloud snapshots stay, and \
`cloudsnap delete --src` deletes them. Id prefixes are not accepted. A volume with a pinned snapshot needs --force.

Examples:
  blockctl volume delete db
  blockctl volume delete db --force --yes";

const ATTACH_HELP: &str = "\
The device belongs to the kernel: while the daemon restarts, requests wait. It needs the kernel's \
nbd module (`modprobe nbd`) and a daemon with root or CAP_SYS_ADMIN. Attaching an attached volume \
with the same options succeeds without changes.

Examples:
  blockctl volume attach db
  blockctl volume attach db --device /dev/nbd7 --persistent
  blockctl volume attach db --read-only
  blockctl volume attach db --timeout 1m --dead-timeout 30m --connections 2";

const DETACH_HELP: &str = "\
Refused while the device is mounted, used for swap, or held by another device. With --force, its \
users get errors, and unwritten data is lost.

Examples:
  blockctl volume detach db
  blockctl volume detach /dev/nbd7
  blockctl volume detach db --force";
const RESIZE_HELP: &str = "\
The volume may be in use: clients that query it see the new size, and a filesystem in it can then \
be grown. A volume never shrinks. Snapshots keep the size of their time.

Examples:
  blockctl volume resize db --size 16GiB";

const RENAME_HELP: &str = "\
Refused while clients are connected or the volume is attached. Snapshots, schedules, rules and \
backups follow the volume; lists of clients in the daemon's configuration have its new name from \
then on. Existing backups keep the former name.

Examples:
  blockctl volume rename db-restored db";

const UPDATE_HELP: &str = "\
Other labels than the given ones stay. A volume is in at most one group; `snapshot create-group` freezes all volumes of a group together.

Connected clients are not notified when a volume becomes read-only; their writes fail with EPERM.

Examples:
  blockctl volume update db --read-only on
  blockctl volume update db --read-only off
  blockctl volume update db --group shop --label app=shop,tier=db
  blockctl volume update db --label +tier=web,-app
  blockctl volume update db --no-group --no-labels";

const URI_HELP: &str = "\
Examples:
  blockctl volume uri db
  nbdinfo \"$(blockctl volume uri db)\"
  nbdcopy \"$(blockctl volume uri db@before-upgrade)\" db.img
  qemu-img info \"$(blockctl volume uri db)\"";

/// Subcommands of `volume`.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Create a volume
    #[command(visible_alias = "c", after_help = CREATE_HELP)]
    Create(CreateArgs),
    /// Create a writable volume from a snapshot
    #[command(after_help = CLONE_HELP)]
    Clone(CloneArgs),
    /// Check the metadata of a volume
    #[command(after_help = CHECK_HELP)]
    Check(OneVolume),
    /// Find and repair damaged blocks on the disk
    #[command(after_help = SCRUB_HELP)]
    Scrub(ScrubArgs),
    /// List volumes
    #[command(visible_alias = "l", after_help = LIST_HELP)]
    List(ListArgs),
    /// Show a volume in detail
    #[command(visible_alias = "i", after_help = INSPECT_HELP)]
    Inspect(OneVolume),
    /// Grow a volume
    #[command(after_help = RESIZE_HELP)]
    Resize(ResizeArgs),
    /// Rename a volume and its export
    #[command(after_help = RENAME_HELP)]
    Rename(RenameArgs),
    /// Change a volume's properties
    #[command(after_help = UPDATE_HELP)]
    Update(UpdateArgs),
    /// Delete a volume and its local snapshots
    #[command(visible_alias = "d", after_help = DELETE_HELP)]
    Delete(DeleteArgs),
    /// Attach a volume as /dev/nbdN
    #[command(visible_alias = "a", after_help = ATTACH_HELP)]
    Attach(AttachArgs),
    /// Detach a volume
    #[command(after_help = DETACH_HELP)]
    Detach(DetachArgs),
    /// Print the NBD URI of a volume or snapshot
    #[command(after_help = URI_HELP)]
    Uri(UriArgs),
}

/// `volume create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the volume and of its export
    pub name: VolumeName,
    /// Size of the volume, such as 8GiB [default: that of the image]
    #[arg(short, long, value_parser = parse_size, required_unless_present = "from_image")]
    pub size: Option<ByteSize>,
    /// Raw image to copy: a file, - for stdin, or an NBD URI
    #[arg(long, value_name = "FILE|URI", value_parser = OsStringValueParser::new().try_map(ImageRef::try_from))]
    pub from_image: Option<ImageRef>,
    /// Labels of the volume
    #[arg(short, long, value_name = "K=V,…")]
    pub label: Vec<Labels>,
    /// Treatment of anomalies: the label anomaly-policy
    #[arg(long, value_name = "off|observe|protect")]
    pub anomaly_policy: Option<AnomalyPolicy>,
    /// Consistency group of the volume
    #[arg(short, long)]
    pub group: Option<GroupName>,
}

/// `volume clone`
#[derive(Debug, Args)]
pub struct CloneArgs {
    /// Name of the new volume and of its export
    pub name: VolumeName,
    /// Snapshot: VOLUME@NAME, VOLUME@latest, VOLUME@TIME or id
    pub snapshot: LocalSnapshot,
    /// Labels of the new volume
    #[arg(short, long, value_name = "K=V,…")]
    pub label: Vec<Labels>,
}

/// `volume scrub`
#[derive(Debug, Args)]
pub struct ScrubArgs {
    /// Volume: name, id or id prefix [default: all volumes]
    pub volume: Option<VolumeRef>,
    /// Stop after this many bytes, such as 100GiB [default: all data]
    #[arg(long, value_name = "BYTES")]
    pub budget: Option<ByteSize>,
    /// Limit of reads per second, such as 50MiB [default: none]
    #[arg(long, value_name = "BYTES")]
    pub limit: Option<ByteSize>,
    /// Repair damaged blocks from cloud snapshots
    #[arg(long)]
    pub repair: bool,
    /// Wait option.
    #[command(flatten)]
    pub wait: WaitArg,
}

/// `volume list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only volumes of this group
    #[arg(short, long)]
    pub group: Option<GroupName>,
    /// Filters and order.
    #[command(flatten)]
    pub filter: ListFilter<Volume>,
    /// Width option.
    #[command(flatten)]
    pub width: WideArg,
}

/// `volume attach`
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// Name or id of the volume
    pub volume: VolumeRef,
    /// Device, such as /dev/nbd7 [default: a free one]
    #[arg(long)]
    pub device: Option<NbdDevice>,
    /// Attach read-only
    #[arg(long)]
    pub read_only: bool,
    /// Attach again at each daemon start
    #[arg(long)]
    pub persistent: bool,
    /// Request timeout before a resend, 1s to 1h [default: 30s]
    #[arg(long, value_parser = parse_seconds)]
    pub timeout: Option<u64>,
    /// Daemon absence before requests fail, 1s to 7d [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    pub dead_timeout: Option<u64>,
    /// Connections, 1 to 16 [default: one per core, 2 to 4]
    #[arg(long, value_name = "N")]
    pub connections: Option<u32>,
    /// Logical block size: 512, 1024, 2048 or 4096 bytes [default: 4096]
    #[arg(long, value_name = "BYTES")]
    pub block_size: Option<u32>,
}

/// `volume detach`
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// Volume name or id, or device
    #[arg(value_name = "VOLUME|DEVICE")]
    pub target: DetachTarget,
    /// Detach a device that is in use
    #[arg(short, long)]
    pub force: bool,
}

/// Target of `volume detach`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetachTarget {
    /// A volume.
    Volume(VolumeRef),
    /// The volume attached to this device.
    Device(NbdDevice),
}

impl std::str::FromStr for DetachTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return text
                .parse()
                .map(Self::Device)
                .map_err(|error: blockd_api::attachments::NbdDeviceError| error.to_string());
        }
        text.parse().map(Self::Volume).map_err(|error: blockd_api::NameError| error.to_string())
    }
}

/// `volume resize`
#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// Name or id of the volume
    pub volume: VolumeRef,
    /// New size of the volume, such as 16GiB
    #[arg(short, long, value_parser = parse_size)]
    pub size: ByteSize,
}

/// `volume rename`
#[derive(Debug, Args)]
pub struct RenameArgs {
    /// Name or id of the volume
    pub volume: VolumeRef,
    /// New name of the volume and of its export
    pub name: VolumeName,
}

/// `volume update`
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Name or id of the volume
    pub volume: VolumeRef,
    /// Changed properties.
    #[command(flatten)]
    pub changes: Changes,
}

/// Properties of `volume update`; at least one is required.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Changes {
    /// Read-only state for clients
    #[arg(long, value_name = "on|off", value_parser = parse_switch, action = clap::ArgAction::Set)]
    pub read_only: Option<bool>,
    /// Acknowledge discarded writes
    #[arg(long)]
    pub acknowledge_discarded_writes: bool,
    /// Set labels, or remove those with a minus
    #[arg(short, long, value_name = "K=V|-K,…", allow_hyphen_values = true)]
    pub label: Vec<LabelChanges>,
    /// Treatment of anomalies: the label anomaly-policy
    #[arg(long, value_name = "off|observe|protect")]
    pub anomaly_policy: Option<AnomalyPolicy>,
    /// Remove all labels, except those of restores and clones
    #[arg(long, conflicts_with = "label")]
    pub no_labels: bool,
    /// Consistency group of the volume
    #[arg(short, long, conflicts_with = "no_group")]
    pub group: Option<GroupName>,
    /// Remove the volume from its group
    #[arg(long)]
    pub no_group: bool,
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".into()),
    }
}

/// `volume uri`
#[derive(Debug, Args)]
pub struct UriArgs {
    /// Name or id of the volume, VOLUME@SNAPSHOT, or id of a snapshot
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    pub export: ExportRef,
}

/// `volume delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Name or id of the volume
    pub volume: VolumeRef,
    /// Delete pinned snapshots too
    #[arg(long)]
    pub force: bool,
    /// Confirmation option.
    #[command(flatten)]
    pub yes: YesArg,
}

/// Volume argument.
#[derive(Debug, Args)]
pub struct OneVolume {
    /// Name or id of the volume
    pub volume: VolumeRef,
}

fn parse_size(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error: blockd_api::SizeError| error.to_string())?;
    let Err(error) = check_volume_size(size.as_bytes()) else { return Ok(size) };
    let (binary, cause) = match text.strip_suffix(['B', 'b']) {
        Some(decimal) => (format!("{decimal}iB"), error.to_string()),
        None => (format!("{text}GiB"), "a size without a unit is in bytes".to_owned()),
    };
    match binary.parse::<ByteSize>().is_ok_and(|size| check_volume_size(size.as_bytes()).is_ok()) {
        true => Err(format!("{cause}: did you mean {binary}?")),
        false => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_of_no_volume_suggests_a_binary_unit() {
        for (given, hint) in [
            ("8", Some("8GiB")),
            ("10GB", Some("10GiB")),
            ("1.5gb", Some("1.5giB")),
            ("65TiB", None),
            ("17B", None),
        ] {
            let error = parse_size(given).unwrap_err();
            let found = error.split_once("did you mean ").map(|(_, found)| found.trim_end_matches('?'));
            assert_eq!(found, hint, "{error}");
        }
        assert_eq!(parse_size("4096").unwrap().as_bytes(), 4096);
    }
}
