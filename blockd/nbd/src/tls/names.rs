//! Names in a client certificate: the common name of the subject, and alternative names of type DNS, e-mail
//! or URI. The certificate is already verified, so invalid names are skipped, not reported.

// DER tags
const BOOLEAN: u8 = 0x01;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
// Tags of alternative names (GeneralName)
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;

/// id-at-commonName, 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
/// id-ce-subjectAltName, 2.5.29.17.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 17];

/// Maximum number of names; further ones are ignored.
const MAX_NAMES: usize = 64;

/// Returns the distinct names in a certificate (DER), at most 64: common names of the subject, and
/// alternative names that are DNS names, e-mail addresses or URIs. A malformed part ends the search.
#[must_use]
pub fn certificate_names(der: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    // A malformed part ends the search; the names before it are valid.
    let _ = collect(der, &mut names);
    debug_assert!(names.len() <= MAX_NAMES, "the names of a certificate are bounded");
    names
}

fn collect(der: &[u8], names: &mut Vec<String>) -> Option<()> {
    let certificate = Der(der).expect(SEQUENCE)?;
    let mut fields = Der(Der(certificate).expect(SEQUENCE)?);
    if fields.peek() == Some(VERSION) {
        fields.next()?;
    }
    // Skips serial number, signature algorithm, issuer and validity.
    for _ in 0..4 {
        fields.next()?;
    }
    let mut subject = Der(fields.expect(SEQUENCE)?);
    while !subject.is_empty() {
        let mut attributes = Der(subject.expect(SET)?);
        while !attributes.is_empty() {
            let mut attribute = Der(attributes.expect(SEQUENCE)?);
            let is_name = attribute.expect(OBJECT_ID)? == COMMON_NAME;
            let (tag, value) = attribute.next()?;
            if is_name && matches!(tag, UTF8_STRING | PRINTABLE_STRING | IA5_STRING) {
                add(names, value);
            }
        }
    }
    // Public key, unique identifiers, extensions.
    while let Some((tag, value)) = fields.next() {
        if tag == EXTENSIONS {
            alternative_names(Der(Der(value).expect(SEQUENCE)?), names)?;
        }
    }
    Some(())
}

fn alternative_names(mut extensions: Der<'_>, names: &mut Vec<String>) -> Option<()> {
    while !extensions.is_empty() {
        let mut extension = Der(extensions.expect(SEQUENCE)?);
        if extension.expect(OBJECT_ID)? != SUBJECT_ALT_NAME {
            continue;
        }
        if extension.peek() == Some(BOOLEAN) {
            extension.next()?;
        }
        let mut list = Der(Der(extension.expect(OCTET_STRING)?).expect(SEQUENCE)?);
        while !list.is_empty() {
            let (tag, value) = list.next()?;
            if matches!(tag, EMAIL | DNS | URI) && value.is_ascii() {
                add(names, value);
            }
        }
    }
    Some(())
}

/// Adds a name, unless it is known, not UTF-8, empty or has control characters, which could disguise it.
fn add(names: &mut Vec<String>, value: &[u8]) {
    let Ok(name) = std::str::from_utf8(value) else {
        return;
    };
    let is_plain = !name.is_empty() && !name.chars().any(char::is_control);
    if is_plain && names.len() < MAX_NAMES && !names.iter().any(|known| known == name) {
        names.push(name.to_owned());
    }
}

/// Reader of DER elements: tag, length of up to three bytes, value.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], mut rest) = self.0.split_first_chunk::<2>()?;
        let mut len_bytes = usize::from(first);
        if first >= 0x80 {
            let count = usize::from(first & 0x7f);
            if count == 0 || count > 3 {
                return None;
            }
            let (digits, after) = rest.split_at_checked(count)?;
            len_bytes = digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit));
            // DER requires the shortest form.
            if digits[0] == 0 || len_bytes < 0x80 {
                return None;
            }
            rest = after;
        }
        let (value, after) = rest.split_at_checked(len_bytes)?;
        self.0 = after;
        Some((tag, value))
    }

    fn expect(&mut self, wanted: u8) -> Option<&'a [u8]> {
        let (tag, value) = self.next()?;
        (tag == wanted).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair, SanType};

    fn certificate() -> Vec<u8> {
        let mut params =
            CertificateParams::new(vec!["db.example".to_owned(), "192.0.2.1".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "not a name");
        params.distinguished_name.push(DnType::CommonName, "Bärbel");
        params.subject_alt_names.push(SanType::Rfc822Name("a@b.example".try_into().unwrap()));
        params.subject_alt_names.push(SanType::URI("spiffe://x/db".try_into().unwrap()));
        params.subject_alt_names.push(SanType::DnsName("db.example".try_into().unwrap()));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn names_are_found_and_other_fields_skipped() {
        let names = certificate_names(&certificate());
        assert_eq!(names, ["Bärbel", "db.example", "a@b.example", "spiffe://x/db"]);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String("admin\0.evil".to_owned()));
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(certificate_names(der.der()), Vec::<String>::new());
    }

    #[test]
    fn names_behind_long_lengths_are_found() {
        for len in [127, 128, 255, 256, 65_535, 65_536] {
            let name = "n".repeat(len);
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, name.as_str());
            params.distinguished_name.push(DnType::CommonName, name.as_str());
            let uri = format!("spiffe://{name}");
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
            let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            assert!(certificate_names(der.der()) == [name, uri], "{len}");
        }
    }

    #[test]
    fn malformed_length_of_an_element_is_rejected() {
        let next = |header: &[u8], len: usize| {
            let element = [header, &vec![7; len]].concat();
            Der(&element).next().map(|(tag, value)| (tag, value.len()))
        };
        for (header, len) in [
            (&[4, 0][..], 0),
            (&[4, 0x7f], 127),
            (&[4, 0x81, 0x80], 128),
            (&[4, 0x82, 1, 0], 256),
            (&[4, 0x83, 1, 0, 0], 65_536),
        ] {
            assert_eq!(next(header, len), Some((4, len)), "{header:x?}");
            assert_eq!(len.checked_sub(1).and_then(|short| next(header, short)), None, "{header:x?}");
        }
        // Indefinite, reserved, longer than a certificate, truncated, and not in the shortest form.
        for header in [
            &[4, 0x80][..],
            &[4, 0xff],
            &[4, 0x84, 0, 0, 0, 9],
            &[4, 0x81, 9],
            &[4, 0x81, 0x7f],
            &[4, 0x82, 0, 0x80],
            &[4, 0x83, 0, 1, 0],
        ] {
            assert_eq!(next(header, 300), None, "{header:x?}");
        }
        for truncated in [&[4][..], &[4, 0x82, 1]] {
            assert_eq!(next(truncated, 0), None, "{truncated:x?}");
        }
    }

    #[test]
    fn truncated_or_altered_input_never_panics() {
        let good = certificate();
        for len in 0..good.len() {
            let _ = certificate_names(&good[..len]);
            for value in [0, 0x30, 0x7f, 0x80, 0x83, 0x84, 0xff] {
                let mut bad = good.clone();
                bad[len] = value;
                let _ = certificate_names(&bad);
            }
        }
    }
}
