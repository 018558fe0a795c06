//! Metadata contexts in the negotiation: queries of a client, and the contexts of an export that match them.
//!
//! A query is the full name of a context, `namespace:name`. A list query that ends with a colon is a prefix:
//! `base:`, `qemu:`, `qemu:dirty-bitmap:`.

use std::collections::HashSet;

use crate::protocol::constants::*;
use crate::protocol::options::{Refusal, put_reply, take_name};
use crate::protocol::wire::Reader;

/// Metadata context selected by a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContext {
    /// Id in replies.
    pub id: u32,
    /// Full name.
    pub name: String,
}

/// Data of `NBD_OPT_LIST_META_CONTEXT` or `NBD_OPT_SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetaRequest {
    /// Export name; empty for the default export.
    pub(crate) name: String,
    pub(crate) queries: Vec<String>,
}

/// Decodes the data of both options: u32 length, name, u32 count, (u32 length, query) × count.
pub(crate) fn decode_meta_request(data: &[u8]) -> Result<MetaRequest, Refusal> {
    let mut reader = Reader::new(data);
    let name = take_name(&mut reader)?;
    let count = reader.u32().ok_or_else(Refusal::malformed)?;
    if count as usize > MAX_CONTEXTS {
        let message = format!("{count} context queries exceed the limit of {MAX_CONTEXTS}");
        return Err(Refusal::new(NBD_REP_ERR_TOO_BIG, message));
    }
    let queries = (0..count).map(|_| take_name(&mut reader)).collect::<Result<_, _>>()?;
    if reader.is_empty() { Ok(MetaRequest { name, queries }) } else { Err(Refusal::malformed()) }
}

/// Returns the contexts that match a query, or all contexts without queries.
pub(crate) fn list<'a>(contexts: &'a [String], queries: &[String]) -> Vec<&'a str> {
    let is_match = |context: &&String| {
        let matches = |query: &String| {
            *query == **context || (query.ends_with(':') && context.starts_with(query.as_str()))
        };
        queries.is_empty() || queries.iter().any(matches)
    };
    contexts.iter().filter(is_match).map(String::as_str).collect()
}

/// Returns the contexts whose full name is queried, at most [`MAX_CONTEXTS`], numbered from 1.
pub(crate) fn select(contexts: Vec<String>, queries: &[String]) -> Vec<MetaContext> {
    let wanted: HashSet<&String> = queries.iter().collect();
    let chosen = contexts.into_iter().filter(|context| wanted.contains(context)).take(MAX_CONTEXTS);
    // Id 0 is unused: it indicates a missing id.
    let selected: Vec<_> = (1..).zip(chosen).map(|(id, name)| MetaContext { id, name }).collect();
    assert!(selected.len() <= MAX_CONTEXTS, "selected contexts are bounded");
    selected
}

/// Appends the `NBD_REP_META_CONTEXT` of a context; omits one with a name above the protocol's limit.
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
    fn meta_request_is_decoded_or_refused() {
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
    fn prefix_query_matches_in_lists_only() {
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
