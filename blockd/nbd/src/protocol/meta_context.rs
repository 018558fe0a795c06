//! Metadata contexts in the negotiation: what a client asks for, and which of an export's contexts it means.
//!
//! A query is the full name of a context, `namespace:name`. In a list it may also end with a colon, and then
//! means everything that begins with it: `base:`, `qemu:`, `qemu:dirty-bitmap:`.

use std::collections::HashSet;

use crate::protocol::constants::*;
use crate::protocol::options::{Refusal, put_reply, take_name};
use crate::protocol::wire::Reader;

/// A metadata context that a client has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContext {
    /// Id in replies.
    pub id: u32,
    /// Its full name.
    pub name: String,
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetaRequest {
    /// The export's name; empty for the default one.
    pub(crate) name: String,
    pub(crate) queries: Vec<String>,
}

/// Decodes the data of the two options: u32 length, name, u32 count, (u32 length, query) × count.
pub(crate) fn decode_meta_request(data: &[u8]) -> Result<MetaRequest, Refusal> {
    let mut reader = Reader::new(data);
    let name = take_name(&mut reader)?;
    let count = reader.u32().ok_or_else(Refusal::malformed)?;
    if count as usize > MAX_CONTEXTS {
        let message = format!("{count} contexts are asked for: at most {MAX_CONTEXTS} are allowed");
        return Err(Refusal::new(NBD_REP_ERR_TOO_BIG, message));
    }
    let queries = (0..count).map(|_| take_name(&mut reader)).collect::<Result<_, _>>()?;
    if reader.is_empty() { Ok(MetaRequest { name, queries }) } else { Err(Refusal::malformed()) }
}

/// The contexts that a list shows: all of them if nothing in particular is asked for.
pub(crate) fn list<'a>(contexts: &'a [String], queries: &[String]) -> Vec<&'a str> {
    let wanted = |context: &&String| {
        let matches = |query: &String| {
            *query == **context || (query.ends_with(':') && context.starts_with(query.as_str()))
        };
        queries.is_empty() || queries.iter().any(matches)
    };
    contexts.iter().filter(wanted).map(String::as_str).collect()
}

/// The contexts that are chosen: those whose full name is asked for, at most [`MAX_CONTEXTS`].
pub(crate) fn select(contexts: Vec<String>, queries: &[String]) -> Vec<MetaContext> {
    let wanted: HashSet<&String> = queries.iter().collect();
    let chosen = contexts.into_iter().filter(|context| wanted.contains(context)).take(MAX_CONTEXTS);
    // Their number is bounded, so it fits. Zero is left out: it tells a forgotten id from a real one.
    let selected: Vec<_> = (1..).zip(chosen).map(|(id, name)| MetaContext { id, name }).collect();
    assert!(selected.len() <= MAX_CONTEXTS, "chosen contexts are bounded");
    selected
}

/// Appends the `NBD_REP_META_CONTEXT` of one context. One with a name that the protocol cannot carry is left
/// out.
pub(crate) fn put_context(out: &mut Vec<u8>, option: u32, id: u32, name: &str) {
    if name.len() <= MAX_NAME_LEN_BYTES {
        put_reply(out, option, NBD_REP_META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(name: &str, queries: &[&str]) -> Vec<u8> {
        let string = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        let mut data = string(name);
        data.extend((queries.len() as u32).to_be_bytes());
        data.extend(queries.iter().flat_map(|query| string(query)));
        data
    }

    fn contexts() -> Vec<String> {
        ["base:allocation", "qemu:dirty-bitmap:7", "qemu:dirty-bitmap:8"].map(str::to_owned).to_vec()
    }

    #[test]
    fn requests_are_decoded() {
        let request = decode_meta_request(&data("vol", &["base:", "x:y"])).unwrap();
        assert_eq!(request, MetaRequest { name: "vol".into(), queries: vec!["base:".into(), "x:y".into()] });
        let good = data("vol", &["base:"]);
        for len in 0..good.len() {
            assert_eq!(
                decode_meta_request(&good[..len]).unwrap_err().reply_type,
                NBD_REP_ERR_INVALID,
                "{len}"
            );
        }
        assert!(decode_meta_request(&[&good[..], &[0]].concat()).is_err());
        let mut many = good;
        many[7..11].fill(0xff);
        assert_eq!(decode_meta_request(&many).unwrap_err().reply_type, NBD_REP_ERR_TOO_BIG);
        assert!(decode_meta_request(&data("vol", &[""; MAX_CONTEXTS])).is_ok());
        let refusal = decode_meta_request(&data("vol", &[""; MAX_CONTEXTS + 1])).unwrap_err();
        assert_eq!(refusal.reply_type, NBD_REP_ERR_TOO_BIG);
    }

    #[test]
    fn lists_know_wildcards_and_choices_do_not() {
        let contexts = contexts();
        let listed = |queries: &[&str]| {
            let queries: Vec<String> = queries.iter().map(ToString::to_string).collect();
            list(&contexts, &queries).len()
        };
        assert_eq!(listed(&[]), 3);
        assert_eq!(listed(&["base:"]), 1);
        assert_eq!(listed(&["qemu:"]), 2);
        assert_eq!(listed(&["qemu:dirty-bitmap:"]), 2);
        assert_eq!(listed(&["qemu:dirty-bitmap:8", "qemu:dirty-bitmap:8", "base:allocation"]), 2);
        assert_eq!(listed(&["qemu:dirty-bitmap", "", "base:alloc", "other:"]), 0);
        let chosen = |queries: &[&str]| {
            let queries: Vec<String> = queries.iter().map(ToString::to_string).collect();
            select(contexts.clone(), &queries)
        };
        assert_eq!(chosen(&[]), []);
        assert_eq!(chosen(&["qemu:", "base:"]), []);
        let both = chosen(&["qemu:dirty-bitmap:8", "base:allocation", "base:allocation", "no:such"]);
        assert_eq!(both[0], MetaContext { id: 1, name: "base:allocation".into() });
        assert_eq!(both[1], MetaContext { id: 2, name: "qemu:dirty-bitmap:8".into() });
        assert_eq!(both.len(), 2);
    }
}
