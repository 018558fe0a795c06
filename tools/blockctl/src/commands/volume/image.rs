//! Copy of an image into a new volume, over NBD. Blocks of zeroes are not written.

use crate::{
    failure::Failure,
    nbd::{MAX_REQUEST_BYTES, NbdClient, NbdUri, decoded},
};
use blockd_api::ByteSize;
use rustix::fs::{SeekFrom, seek};
use std::{
    ffi::OsString,
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::PathBuf,
};

/// Unit of a volume's size, and of the search for zeroes.
const BLOCK_BYTES: u64 = 4096;
const ZEROES: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// Formats that are not raw, with the bytes at their beginning.
const FORMATS: [(&str, &[u8]); 4] =
    [("qcow2", b"QFI\xfb"), ("VMDK", b"KDMV"), ("VHDX", b"vhdxfile"), ("VHD", b"conectix")];

/// Image on the command line: a raw file, `-` for stdin, or an NBD URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRef {
    Stdin,
    File(PathBuf),
    Nbd(String),
}

/// URI of an image that cannot be copied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "images are not read from {0} URIs: expected a file, file:///PATH, nbd://…, nbd+unix://…, or - for stdin, as in `curl --fail URI | blockctl volume create NAME --size SIZE --from-image -`"
)]
pub struct UnknownScheme(String);

impl TryFrom<OsString> for ImageRef {
    type Error = UnknownScheme;

    fn try_from(text: OsString) -> Result<Self, UnknownScheme> {
        // A path need not be UTF-8.
        let Some(given) = text.to_str() else { return Ok(Self::File(text.into())) };
        let is_scheme = |scheme: &str| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        };
        match given.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) {
            _ if given == "-" => Ok(Self::Stdin),
            _ if given.starts_with("nbd:") || given.starts_with("nbd+") => Ok(Self::Nbd(given.to_owned())),
            Some(("file", path)) => {
                let path = decoded(path.strip_prefix("localhost").unwrap_or(path));
                path.map(|path| Self::File(path.into())).ok_or_else(|| UnknownScheme("such file".to_owned()))
            }
            Some((scheme, _)) => Err(UnknownScheme(scheme.to_owned())),
            None => Ok(Self::File(text.into())),
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => f.write_str("stdin"),
            Self::File(path) => path.display().fmt(f),
            Self::Nbd(uri) => f.write_str(uri),
        }
    }
}

/// Opened image.
pub enum Image {
    Stream(Box<dyn Read + Send>),
    File { file: File, size_bytes: u64 },
    Nbd(NbdClient),
}

impl Image {
    /// Opens an image.
    ///
    /// # Errors
    /// It cannot be opened, or is not raw.
    pub fn open(from: &ImageRef) -> Result<Self, Failure> {
        let failed = |source| Failure::image(from, source);
        match from {
            ImageRef::Stdin => Ok(Self::Stream(Box::new(io::stdin()))),
            ImageRef::Nbd(uri) => {
                let uri: NbdUri = uri.parse().map_err(|error| Failure::usage(format!("{error}")))?;
                Ok(Self::Nbd(NbdClient::connect(&uri).map_err(failed)?))
            }
            ImageRef::File(path) => {
                let file = File::open(path).map_err(failed)?;
                // Of a block device, the length in its metadata is zero.
                let size_bytes = seek(&file, SeekFrom::End(0)).map_err(|error| failed(error.into()))?;
                let mut begin = [0; 8];
                let len = file.read_at(&mut begin, 0).map_err(failed)?;
                let is_of = |(_, magic): &&(&str, &[u8])| begin[..len].starts_with(magic);
                match FORMATS.iter().find(is_of) {
                    Some((format, _)) => Err(Failure::usage(format!(
                        "{from} is a {format} image, not a raw one: serve it with `qemu-nbd --read-only`, and give the NBD URI"
                    ))),
                    None => Ok(Self::File { file, size_bytes }),
                }
            }
        }
    }

    /// Returns the size of the image in whole blocks; `None` of stdin.
    pub fn size(&self) -> Option<ByteSize> {
        let size_bytes = match self {
            Self::Stream(_) => return None,
            Self::File { size_bytes, .. } => *size_bytes,
            Self::Nbd(client) => client.size_bytes(),
        };
        Some(ByteSize::from_bytes(size_bytes.next_multiple_of(BLOCK_BYTES)))
    }

    /// Copies the image, and makes the copy durable.
    ///
    /// # Errors
    /// The image or the volume fails, or the image is larger than the volume.
    pub fn copy_to(self, mut volume: NbdClient) -> io::Result<()> {
        match self.write_to(&mut volume) {
            Ok(()) => volume.finish(),
            Err(error) => {
                // The cause of the failure is more specific.
                let _ = volume.disconnect();
                Err(error)
            }
        }
    }

    fn write_to(self, volume: &mut NbdClient) -> io::Result<()> {
        let room_bytes = volume.size_bytes();
        let too_large = || io::Error::other("the image is larger than the volume");
        let mut buffer = vec![0; MAX_REQUEST_BYTES];
        match self {
            Self::Stream(mut stream) => {
                let mut at_bytes = 0;
                loop {
                    let len = fill(&mut stream, &mut buffer)?;
                    if len == 0 {
                        break;
                    }
                    if at_bytes + len as u64 > room_bytes {
                        return Err(too_large());
                    }
                    write_data(volume, at_bytes, &buffer[..len])?;
                    at_bytes += len as u64;
                }
            }
            Self::File { file, size_bytes } => {
                if size_bytes > room_bytes {
                    return Err(too_large());
                }
                let mut at_bytes = 0;
                while let Some((start, end)) = data_after(&file, at_bytes, size_bytes)? {
                    copy_range(start, end, &mut buffer, |at, piece| {
                        file.read_exact_at(piece, at)?;
                        write_data(volume, at, piece)
                    })?;
                    at_bytes = end;
                }
            }
            Self::Nbd(mut image) => {
                let size_bytes = image.size_bytes();
                if size_bytes > room_bytes {
                    return Err(too_large());
                }
                copy_range(0, size_bytes, &mut buffer, |at, piece| {
                    image.read(at, piece)?;
                    write_data(volume, at, piece)
                })?;
            }
        }
        Ok(())
    }
}

/// Calls `copy` for each part of a range that fits into the buffer.
fn copy_range(
    start_bytes: u64,
    end_bytes: u64,
    buffer: &mut [u8],
    mut copy: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut at_bytes = start_bytes;
    while at_bytes < end_bytes {
        let len = (end_bytes - at_bytes).min(buffer.len() as u64);
        copy(at_bytes, &mut buffer[..len as usize])?;
        at_bytes += len;
    }
    Ok(())
}

/// Returns the next range with data of a sparse file; all of it where the filesystem has no holes.
fn data_after(file: &File, at_bytes: u64, size_bytes: u64) -> io::Result<Option<(u64, u64)>> {
    if at_bytes >= size_bytes {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at_bytes)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(rustix::io::Errno::INVAL) => return Ok(Some((at_bytes, size_bytes))),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    Ok((start < size_bytes).then_some((start, end.min(size_bytes))))
}

/// Reads until the buffer is full or the stream ends.
fn fill(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match stream.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// Writes all runs of blocks that are not zero; a new volume reads as zeroes.
fn write_data(volume: &mut NbdClient, at_bytes: u64, data: &[u8]) -> io::Result<()> {
    let is_zero = |block: &[u8]| *block == ZEROES[..block.len()];
    let mut run_start = None;
    let mut at = 0;
    for block in data.chunks(BLOCK_BYTES as usize) {
        match (run_start, is_zero(block)) {
            (None, false) => run_start = Some(at),
            (Some(start), true) => {
                volume.write(at_bytes + start as u64, &data[start..at])?;
                run_start = None;
            }
            (None, true) | (Some(_), false) => {}
        }
        at += block.len();
    }
    match run_start {
        Some(start) => volume.write(at_bytes + start as u64, &data[start..]),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::tests::serve;
    use std::io::Write;

    const MIB: usize = 1 << 20;

    /// Returns three MiB with data in few blocks, some of them next to each other.
    fn content() -> Vec<u8> {
        let mut content = vec![0; 3 * MIB - 100];
        for at in [0, 5000, MIB - 1, MIB, 2 * MIB, 3 * MIB - 101] {
            content[at] = 1 + (at % 250) as u8;
        }
        content
    }

    fn copied(image: Image) -> Vec<(u64, usize)> {
        let (volume, server) = serve(vec![0; 4 * MIB]);
        image.copy_to(volume).unwrap();
        let (found, written) = server.join().unwrap();
        let (image, rest) = found.split_at(content().len());
        assert!(image == content() && rest.iter().all(|byte| *byte == 0));
        written
    }

    #[test]
    fn image_is_a_path_or_a_known_uri() {
        let parsed = |text: &str| ImageRef::try_from(OsString::from(text));
        let file = |path: &str| Ok(ImageRef::File(path.into()));
        for (text, expected) in [
            ("-", Ok(ImageRef::Stdin)),
            ("ext4.img", file("ext4.img")),
            ("backup:2026.img", file("backup:2026.img")),
            ("./a://b", file("./a://b")),
            ("file:///srv/my%20disk.img", file("/srv/my disk.img")),
            ("file://localhost/srv/disk.img", file("/srv/disk.img")),
            ("nbd+unix:///?socket=/s", Ok(ImageRef::Nbd("nbd+unix:///?socket=/s".to_owned()))),
            ("http://host/disk.img", Err(UnknownScheme("http".to_owned()))),
            ("s3://bucket/disk.img", Err(UnknownScheme("s3".to_owned()))),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
        let told = parsed("https://host/disk.img").unwrap_err().to_string();
        assert!(told.contains("curl") && told.contains("--from-image -"), "{told}");
    }

    #[test]
    fn images_are_copied_without_their_zeroes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let mut file = File::create(&path).unwrap();
        file.write_all(&content()).unwrap();
        let whole = Image::open(&ImageRef::File(path.clone())).unwrap();
        assert_eq!(whole.size().unwrap().as_bytes(), 3 * MIB as u64);
        let expected = copied(whole);
        let ends = [(0, 8192), (MIB as u64 - 4096, 4096), (MIB as u64, 4096), (2 * MIB as u64, 4096)];
        assert_eq!(expected[..4], ends);
        assert_eq!(expected[4..], [(3 * MIB as u64 - 4096, 3996)]);

        let sparse = File::create(&path).unwrap();
        sparse.set_len(content().len() as u64).unwrap();
        for (at, len) in &expected {
            let at = *at as usize;
            sparse.write_all_at(&content()[at..at + len], at as u64).unwrap();
        }
        copied(Image::open(&ImageRef::File(path)).unwrap());
        assert_eq!(copied(Image::Stream(Box::new(io::Cursor::new(content())))), expected);
        let (image, _server) = serve(content());
        copied(Image::Nbd(image));
    }

    #[test]
    fn unsuitable_images_are_refused() {
        let (volume, _server) = serve(vec![0; 4096]);
        let image = Image::Stream(Box::new(io::Cursor::new(vec![1; 4097])));
        assert!(image.copy_to(volume).unwrap_err().to_string().contains("larger than the volume"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, b"QFI\xfb\0\0\0\x03").unwrap();
        let error = Image::open(&ImageRef::File(path)).err().unwrap().to_string();
        assert!(error.contains("qcow2") && error.contains("qemu-nbd"), "{error}");
    }
}
