//! The inputs that the fuzz targets begin with, and those that once broke them (`tests/fuzz/corpus`).

use blockd_testkit::replay;

#[test]
fn cloud() {
    replay("cloud", blockd_cloud::testing::fuzz_objects);
}

#[test]
fn manifest() {
    replay("manifest", blockd_cloud::testing::fuzz_manifests);
}

#[test]
fn frame_table() {
    replay("frame_table", blockd_cloud::testing::fuzz_frame_tables);
}

#[test]
fn key_file() {
    replay("key_file", blockd_cloud::testing::fuzz_key_slots);
}
