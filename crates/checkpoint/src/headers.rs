//! Walks over the headers of an untrusted tar archive.
//!
//! Nothing is unpacked and contents are skipped by seeking. Every size that a header claims is checked
//! against the file's length before anything is allocated for it; names, extension headers and the
//! number of entries have limits. Extension headers are read here and not by `tar`, which would take
//! any length a header claims.
//!
//! Only files and folders are taken. CRI-O writes nothing else: the archive has CRIU's images, which are
//! files, and the file system's changes are in a tar of their own (`internal/lib/checkpoint.go`, 1.36.3).
//! A link is more than useless there: on a restore `config.dump` would be read where it leads.

use std::io::{self, Read, Seek, SeekFrom};

use tar::{EntryType, Header, PaxExtensions};

/// A checkpoint has some files per process, and no more entries than this.
const MOST_ENTRIES: u32 = 200_000;
/// Linux' `PATH_MAX`.
const LONGEST_NAME: u64 = 4096;
/// An extension header holds a name and some attributes.
const LARGEST_EXTENSION: u64 = 64 << 10;
const BLOCK: u64 = 512;

/// Why the walk stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The file can't be read.
    Io(io::Error),
    /// It is not an archive we take; the text says what it is.
    Refused(&'static str),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

const CUT_SHORT: Stop = Stop::Refused("is cut short; take the checkpoint again");

const TOO_LONG: Stop = Stop::Refused("has a name or an attribute that is too long");

/// One file or folder in the archive.
pub(crate) struct Entry {
    /// Its path, without `./` before and `/` behind it.
    pub name: Vec<u8>,
    /// Size of its content in bytes.
    pub size: u64,
    start: u64,
}

/// What extension headers say of the entry that follows them.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

/// The walk.
pub(crate) struct Headers<R> {
    archive: R,
    length: u64,
    next: u64,
    entries: u32,
}

impl<R: Read + Seek> Headers<R> {
    pub(crate) fn new(mut archive: R) -> io::Result<Self> {
        let length = archive.seek(SeekFrom::End(0))?;
        Ok(Self { archive, length, next: 0, entries: 0 })
    }

    /// The next entry; none at the archive's end mark. An archive without one is cut short.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Stop> {
        let mut extension = Extension::default();
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            let kind = header.entry_type();
            let start = self.next;
            let size = match extension.size {
                Some(size) => size,
                None if has_no_content(kind) => 0,
                None => header.entry_size().map_err(|_| Stop::Refused("has a broken header"))?,
            };
            self.skip(size)?;
            match kind {
                EntryType::XHeader => self.read_pax(start, size, &mut extension)?,
                EntryType::GNULongName => {
                    let mut name = self.content(start, size, LONGEST_NAME)?;
                    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
                    extension.name = Some(name);
                }
                EntryType::GNULongLink | EntryType::XGlobalHeader => {}
                EntryType::GNUSparse => return Err(Stop::Refused("has a sparse file in it")),
                EntryType::Regular | EntryType::Directory => {
                    let name = extension.name.unwrap_or_else(|| header.path_bytes().into_owned());
                    return Ok(Some(Entry { name: inner(&name, kind)?, size, start }));
                }
                _ => return Err(Stop::Refused("has a link or a device in it")),
            }
        }
    }

    /// The first `most` bytes of an entry.
    pub(crate) fn beginning(&mut self, entry: &Entry, most: u64) -> Result<Vec<u8>, Stop> {
        self.content(entry.start, entry.size.min(most), most)
    }

    fn header(&mut self) -> Result<Option<Header>, Stop> {
        if self.length - self.next < BLOCK {
            return Err(CUT_SHORT);
        }
        self.archive.seek(SeekFrom::Start(self.next))?;
        let mut header = Header::new_old();
        self.archive.read_exact(header.as_mut_bytes())?;
        self.next += BLOCK;
        let bytes = header.as_bytes();
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum();
        // The sum counts its own eight bytes as spaces.
        if header.cksum().ok() != Some(sum + 8 * u32::from(b' ')) {
            return Err(Stop::Refused("is not a tar archive, or is damaged"));
        }
        self.entries += 1;
        if self.entries > MOST_ENTRIES {
            return Err(Stop::Refused("has too many entries for a checkpoint"));
        }
        Ok(Some(header))
    }

    /// Moves past `size` bytes of content and their padding.
    fn skip(&mut self, size: u64) -> Result<(), Stop> {
        let padded = size.checked_next_multiple_of(BLOCK).ok_or(CUT_SHORT)?;
        self.next = self.next.checked_add(padded).ok_or(CUT_SHORT)?;
        if self.next > self.length { Err(CUT_SHORT) } else { Ok(()) }
    }

    fn content(&mut self, start: u64, size: u64, most: u64) -> Result<Vec<u8>, Stop> {
        if size > most {
            return Err(TOO_LONG);
        }
        self.archive.seek(SeekFrom::Start(start))?;
        let mut content = Vec::new();
        self.archive.by_ref().take(size).read_to_end(&mut content)?;
        Ok(content)
    }

    fn read_pax(&mut self, start: u64, size: u64, found: &mut Extension) -> Result<(), Stop> {
        let records = self.content(start, size, LARGEST_EXTENSION)?;
        for record in PaxExtensions::new(&records) {
            let record = record.map_err(|_| Stop::Refused("has a broken extension header"))?;
            match record.key_bytes() {
                b"path" => found.name = Some(record.value_bytes().to_vec()),
                b"size" => {
                    let size = record.value().ok().and_then(|value| value.parse().ok());
                    found.size = Some(size.ok_or(Stop::Refused("has a broken extension header"))?);
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(Stop::Refused("has a sparse file in it"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The name without `./` before and `/` behind it. One that could lead elsewhere, or be another way to
/// write one that we look for, is refused.
fn inner(name: &[u8], kind: EntryType) -> Result<Vec<u8>, Stop> {
    if name.len() as u64 > LONGEST_NAME {
        return Err(TOO_LONG);
    }
    let name = name.strip_prefix(b"./".as_slice()).unwrap_or(name);
    let name = name.strip_suffix(b"/").unwrap_or(name);
    let is_root = kind == EntryType::Directory && matches!(name, b"" | b".");
    let is_bad = |part: &[u8]| matches!(part, b"" | b"." | b"..") || part.contains(&0);
    if !is_root && name.split(|byte| *byte == b'/').any(is_bad) {
        return Err(Stop::Refused("has a name in it that is absolute, or has . or .. in it"));
    }
    Ok(name.to_vec())
}

/// Kinds whose headers may name a size that means nothing.
fn has_no_content(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn names(archive: Vec<u8>) -> Result<Vec<(String, u64)>, Stop> {
        let mut headers = Headers::new(Cursor::new(archive))?;
        let mut names = Vec::new();
        while let Some(entry) = headers.next()? {
            names.push((String::from_utf8_lossy(&entry.name).into_owned(), entry.size));
        }
        Ok(names)
    }

    fn archive(entries: &[(&str, usize)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, size) in entries {
            let mut header = Header::new_gnu();
            header.set_size(*size as u64);
            tar.append_data(&mut header, name, vec![7; *size].as_slice()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn refusal(archive: Vec<u8>) -> &'static str {
        match names(archive) {
            Err(Stop::Refused(why)) => why,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn long_names_are_read_and_too_long_ones_refused() {
        let long = format!("a/{}", "b".repeat(200));
        assert_eq!(names(archive(&[(&long, 3)])).unwrap(), [(long, 3)]);
        let longer = "b/".repeat(4000);
        assert!(refusal(archive(&[(&longer, 1)])).contains("too long"));
    }

    #[test]
    fn an_extension_header_gives_size_and_name() {
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_pax_extensions([("path", "config.dump".as_bytes()), ("size", b"5")]).unwrap();
        let mut header = Header::new_ustar();
        header.set_path("other").unwrap();
        header.set_size(0);
        header.set_cksum();
        let mut bytes = tar.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        bytes.extend(header.as_bytes());
        bytes.extend([b'x'; 512]);
        bytes.extend([0; 1024]);
        assert_eq!(names(bytes).unwrap(), [("config.dump".to_owned(), 5)]);
    }

    /// An archive with one entry of this kind, whose name is not looked at before it is written.
    fn one(kind: EntryType, name: &str) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_cksum();
        [header.as_bytes().as_slice(), &[0; 1024]].concat()
    }

    #[test]
    fn only_files_and_folders_are_taken() {
        let taken = |kind, name| names(one(kind, name)).unwrap().remove(0).0;
        assert_eq!(taken(EntryType::Regular, "./stats-dump"), "stats-dump");
        assert_eq!(taken(EntryType::Directory, "checkpoint/"), "checkpoint");
        assert_eq!(taken(EntryType::Directory, "./"), "");
        assert_eq!(taken(EntryType::Directory, "."), ".");
        for kind in [
            EntryType::Symlink,
            EntryType::Link,
            EntryType::Char,
            EntryType::Block,
            EntryType::Fifo,
            EntryType::Continuous,
            EntryType::new(b'V'),
        ] {
            let why = refusal(one(kind, "config.dump"));
            assert!(why.contains("link or a device"), "{kind:?}: {why}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in
            ["/config.dump", "../a", "a/../config.dump", "a/..", "././a", "a//b", "", ".", ".//a"]
        {
            let why = refusal(one(EntryType::Regular, name));
            assert!(why.contains("absolute"), "{name}: {why}");
        }
        for name in ["a..b", "..a", ".a", "a/.b./c"] {
            assert_eq!(names(one(EntryType::Regular, name)).unwrap().len(), 1, "{name}");
        }
    }

    #[test]
    fn an_extension_headers_name_has_the_same_limits() {
        let named = |name: &[u8]| {
            let mut tar = tar::Builder::new(Vec::new());
            tar.append_pax_extensions([("path", name)]).unwrap();
            let mut bytes = tar.into_inner().unwrap();
            bytes.truncate(bytes.len() - 1024);
            bytes.extend(one(EntryType::Regular, "a"));
            refusal(bytes)
        };
        assert!(named(b"a/../b").contains("absolute"));
        assert!(named(b"config.dump\0").contains("absolute"));
        assert!(named(&b"a".repeat(5000)).contains("too long"));
    }

    #[test]
    fn a_claimed_size_allocates_nothing() {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(u64::MAX / 2);
        header.set_cksum();
        assert!(refusal(header.as_bytes().to_vec()).contains("cut short"));
    }

    proptest! {
        #[test]
        fn an_archive_cut_anywhere_is_refused(cut in 0usize..6000) {
            let whole = archive(&[("config.dump", 10), ("checkpoint/pages-1.img", 3000)]);
            // The end mark is two blocks; one is enough to see the end.
            let cut = cut.min(whole.len() - 1025);
            prop_assert!(names(whole[..cut].to_vec()).is_err());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = names(bytes);
        }

        #[test]
        fn no_damage_panics(at in 0usize..2560, byte in any::<u8>()) {
            let mut damaged = archive(&[("config.dump", 10), (&"n".repeat(150), 5)]);
            damaged[at] = byte;
            let _ = names(damaged);
        }
    }
}
