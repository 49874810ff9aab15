//! The quickstart says what it should.

use crate::program::Program;

#[test]
fn it_prints_and_ends() {
    let finished = Program::start("quickstart", &[]).finish();
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    assert_eq!(finished.output, ["hello -> HELLO", "world -> WORLD"]);
    assert!(finished.errors.is_empty(), "{finished:#?}");
}
