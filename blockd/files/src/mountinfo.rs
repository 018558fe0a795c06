//! Reader of `/proc/self/mountinfo`, see proc_pid_mountinfo(5).
//!
//! It parses bytes: a mount point that is not UTF-8 must not hide the others.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// A mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Id of the mount.
    pub id: u64,
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// Mount point.
    pub mount_point: PathBuf,
    /// Type, such as `ext4`.
    pub kind: OsString,
    /// Source, such as `/dev/nbd0`.
    pub source: OsString,
    /// Options of the filesystem, joined by commas.
    pub super_options: Vec<u8>,
}

/// Reads the mounts that this process sees, in the order of mounting.
///
/// # Errors
/// The file cannot be read.
pub fn mounts() -> io::Result<Vec<Mount>> {
    mounts_of_root(Path::new("/"))
}

/// Reads the mounts from the `proc` filesystem under another root directory.
///
/// # Errors
/// The file cannot be read.
pub fn mounts_of_root(root: &Path) -> io::Result<Vec<Mount>> {
    Ok(parse_mounts(&std::fs::read(root.join("proc/self/mountinfo"))?))
}

/// Parses the content of the file; skips malformed lines.
pub fn parse_mounts(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    // 36 35 98:0 /root /mount/point options optional… - type source superoptions
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let device = fields.nth(1)?;
    let colon = device.iter().position(|byte| *byte == b':')?;
    let device = (number(&device[..colon])?, number(&device[colon + 1..])?);
    let mount_point = OsString::from_vec(unescaped(fields.nth(1)?)).into();
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    Some(Mount {
        id,
        device,
        mount_point,
        kind: OsString::from_vec(unescaped(fields.next()?)),
        source: OsString::from_vec(unescaped(fields.next()?)),
        super_options: fields.next()?.to_vec(),
    })
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    str::from_utf8(digits).ok()?.parse().ok()
}

/// Decodes octal escapes: a space is `\040`.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let digits = digits.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        match digits {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn mounts_are_read_with_escapes_and_optional_fields() {
        let text = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            30 22 43:97 / /mnt/my\\040data\\134x rw shared:1 master:2 - ext4 /dev/nbd3p1 rw,user_id=7\n\
            31 22 0:44 / /not\xff rw - fuse.blockd blockd rw\n\
            not a mount\n";
        let mounts = parse_mounts(text);
        let points: Vec<_> = mounts.iter().map(|mount| mount.mount_point.as_os_str().as_bytes()).collect();
        assert_eq!(points, [&b"/"[..], b"/mnt/my data\\x", b"/not\xff"]);
        assert_eq!((mounts[1].id, mounts[1].device), (30, (43, 97)));
        assert_eq!((mounts[1].kind.to_str(), mounts[1].source.to_str()), (Some("ext4"), Some("/dev/nbd3p1")));
        assert_eq!(mounts[1].super_options, b"rw,user_id=7");
    }

    #[test]
    fn own_mounts_contain_the_root() {
        assert!(mounts().unwrap().iter().any(|mount| mount.mount_point == Path::new("/")));
    }
}
