//! Messages of the `nbd` generic netlink family (`linux/nbd-netlink.h`).

use crate::{
    AttachOptions,
    wire::{Attribute, Attributes, Request},
};
use std::os::fd::{AsRawFd, OwnedFd};

/// Name of the family.
const FAMILY_NAME: &str = "nbd";
/// Multicast group of notifications.
const GROUP_NAME: &str = "nbd_mc_group";
const VERSION: u8 = 1;

/// Id of the generic netlink controller (`GENL_ID_CTRL`).
pub(crate) const CONTROL_FAMILY: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;

const CMD_CONNECT: u8 = 1;
const CMD_DISCONNECT: u8 = 2;
const CMD_RECONFIGURE: u8 = 3;
pub(crate) const CMD_LINK_DEAD: u8 = 4;
const CMD_STATUS: u8 = 5;

const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_TIMEOUT: u16 = 4;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_SOCKETS: u16 = 7;
const ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const ATTR_DEVICE_LIST: u16 = 9;
const ATTR_BACKEND_IDENTIFIER: u16 = 10;

const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;
const DEVICE_ITEM: u16 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_CONNECTED: u16 = 2;

/// Builds a query of the family and group ids.
pub(crate) fn get_family(sequence: u32) -> Vec<u8> {
    Request::new(CONTROL_FAMILY, CTRL_CMD_GETFAMILY, 1, sequence)
        .text(CTRL_ATTR_FAMILY_NAME, FAMILY_NAME)
        .finish()
}

/// Parses the ids of the family and its multicast group.
pub(crate) fn family(attributes: Attributes<'_>) -> Option<(u16, Option<u32>)> {
    let id = attributes.find(CTRL_ATTR_FAMILY_ID).and_then(Attribute::u16)?;
    let groups = attributes.find(CTRL_ATTR_MCAST_GROUPS).map(Attribute::nested);
    let group = groups.into_iter().flatten().find_map(|(_, group)| {
        let group = group.nested();
        let name = group.find(CTRL_ATTR_MCAST_GRP_NAME).and_then(Attribute::text);
        (name == Some(GROUP_NAME)).then(|| group.find(CTRL_ATTR_MCAST_GRP_ID).and_then(Attribute::u32))?
    });
    Some((id, group))
}

fn sockets(request: Request, sockets: &[OwnedFd]) -> Request {
    request.nested(ATTR_SOCKETS, |list| {
        sockets.iter().fold(list, |list, socket| {
            // File descriptors are never negative.
            let fd = socket.as_raw_fd().cast_unsigned();
            list.nested(SOCK_ITEM, |item| item.u32(SOCK_FD, fd))
        })
    })
}

/// Builds a request to attach sockets in transmission as a device.
pub(crate) fn connect(
    family: u16,
    sequence: u32,
    index: Option<u32>,
    size_bytes: u64,
    server_flags: u16,
    options: &AttachOptions,
    fds: &[OwnedFd],
) -> Vec<u8> {
    let mut request = Request::new(family, CMD_CONNECT, VERSION, sequence);
    if let Some(index) = index {
        request = request.u32(ATTR_INDEX, index);
    }
    request = request
        .u64(ATTR_SIZE_BYTES, size_bytes)
        .u64(ATTR_BLOCK_SIZE_BYTES, options.block_size_bytes.into())
        .u64(ATTR_TIMEOUT, options.request_timeout_s)
        .u64(ATTR_DEAD_CONN_TIMEOUT, options.dead_timeout_s)
        .u64(ATTR_SERVER_FLAGS, server_flags.into())
        .text(ATTR_BACKEND_IDENTIFIER, &options.backend);
    sockets(request, fds).finish()
}

/// Builds a request to replace dead sockets of a device, or to change its size.
pub(crate) fn reconfigure(
    family: u16,
    sequence: u32,
    index: u32,
    backend: &str,
    size_bytes: Option<u64>,
    fds: &[OwnedFd],
) -> Vec<u8> {
    let mut request = Request::new(family, CMD_RECONFIGURE, VERSION, sequence)
        .u32(ATTR_INDEX, index)
        .text(ATTR_BACKEND_IDENTIFIER, backend);
    if let Some(size_bytes) = size_bytes {
        request = request.u64(ATTR_SIZE_BYTES, size_bytes);
    }
    if !fds.is_empty() {
        request = sockets(request, fds);
    }
    request.finish()
}

/// Builds a request to disconnect a device.
pub(crate) fn disconnect(family: u16, sequence: u32, index: u32) -> Vec<u8> {
    Request::new(family, CMD_DISCONNECT, VERSION, sequence).u32(ATTR_INDEX, index).finish()
}

/// Builds a query of connected devices.
pub(crate) fn status(family: u16, sequence: u32) -> Vec<u8> {
    Request::new(family, CMD_STATUS, VERSION, sequence).finish()
}

/// Parses the device index of a message.
pub(crate) fn index(attributes: Attributes<'_>) -> Option<u32> {
    attributes.find(ATTR_INDEX).and_then(Attribute::u32)
}

/// Parses the device indexes of a status, and true for connected devices.
pub(crate) fn devices(attributes: Attributes<'_>) -> Vec<(u32, bool)> {
    let list = attributes.find(ATTR_DEVICE_LIST).map(Attribute::nested);
    let items = list.into_iter().flatten().filter(|(kind, _)| *kind == DEVICE_ITEM);
    items
        .filter_map(|(_, item)| {
            let item = item.nested();
            let connected = item.find(DEVICE_CONNECTED).and_then(Attribute::u8).unwrap_or(0);
            Some((item.find(DEVICE_INDEX).and_then(Attribute::u32)?, connected != 0))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Message, messages};

    fn attributes(bytes: &[u8]) -> Attributes<'_> {
        match messages(bytes).next() {
            Some(Message::Generic { attributes, .. }) => attributes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn connect_request_matches_kernel_layout() {
        let fd = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let number = fd.as_raw_fd() as u8;
        let options = AttachOptions {
            block_size_bytes: 4096,
            request_timeout_s: 30,
            dead_timeout_s: 600,
            backend: "me".into(),
        };
        let bytes = connect(0x21, 2, Some(3), 1 << 30, 0x16d, &options, &[fd]);
        #[rustfmt::skip]
        let expected = [
            112, 0, 0, 0, 0x21, 0, 5, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0,
            8, 0, 1, 0, 3, 0, 0, 0,
            12, 0, 2, 0, 0, 0, 0, 0x40, 0, 0, 0, 0,
            12, 0, 3, 0, 0, 0x10, 0, 0, 0, 0, 0, 0,
            12, 0, 4, 0, 30, 0, 0, 0, 0, 0, 0, 0,
            12, 0, 8, 0, 0x58, 2, 0, 0, 0, 0, 0, 0,
            12, 0, 5, 0, 0x6d, 1, 0, 0, 0, 0, 0, 0,
            7, 0, 10, 0, b'm', b'e', 0, 0,
            16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, number, 0, 0, 0,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(index(attributes(&bytes)), Some(3));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn reconfigure_request_has_changed_fields_only() {
        let bytes = reconfigure(0x21, 9, 5, "me", Some(4096), &[]);
        #[rustfmt::skip]
        let expected = [
            48, 0, 0, 0, 0x21, 0, 5, 0, 9, 0, 0, 0, 0, 0, 0, 0, 3, 1, 0, 0,
            8, 0, 1, 0, 5, 0, 0, 0,
            7, 0, 10, 0, b'm', b'e', 0, 0,
            12, 0, 2, 0, 0, 0x10, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn family_and_status_replies_are_parsed() {
        let reply = Request::new(CONTROL_FAMILY, 1, 2, 1)
            .text(CTRL_ATTR_FAMILY_NAME, "nbd")
            .u32(CTRL_ATTR_FAMILY_ID, if cfg!(target_endian = "little") { 33 } else { 33 << 16 })
            .nested(CTRL_ATTR_MCAST_GROUPS, |groups| {
                groups
                    .nested(1, |group| {
                        group.u32(CTRL_ATTR_MCAST_GRP_ID, 5).text(CTRL_ATTR_MCAST_GRP_NAME, "other")
                    })
                    .nested(2, |group| {
                        group.u32(CTRL_ATTR_MCAST_GRP_ID, 6).text(CTRL_ATTR_MCAST_GRP_NAME, GROUP_NAME)
                    })
            })
            .finish();
        assert_eq!(family(attributes(&reply)), Some((33, Some(6))));
        let reply = Request::new(33, CMD_STATUS, 1, 1)
            .nested(ATTR_DEVICE_LIST, |list| {
                list.nested(DEVICE_ITEM, |item| {
                    item.u32(DEVICE_INDEX, 4).u32(DEVICE_CONNECTED, u32::from_ne_bytes([1, 0, 0, 0]))
                })
                .nested(DEVICE_ITEM, |item| item.u32(DEVICE_INDEX, 5).u32(DEVICE_CONNECTED, 0))
            })
            .finish();
        assert_eq!(devices(attributes(&reply)), [(4, true), (5, false)]);
    }
}
