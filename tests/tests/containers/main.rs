//! Containers that share a directory, and ringpost between them: real processes in mount, pid, network and
//! user namespaces of their own. `docs/containers.md` says what follows for users, and names the tests.

mod abstract_names;
mod confined;
mod container;
mod identity;
mod permissions;
mod restarts;
mod roles;
mod volume;

/// The page says which test checks which sentence.
#[test]
fn the_page_names_tests_that_exist() {
    let sources = [
        ("abstract_names", include_str!("abstract_names.rs")),
        ("confined", include_str!("confined.rs")),
        ("identity", include_str!("identity.rs")),
        ("permissions", include_str!("permissions.rs")),
        ("restarts", include_str!("restarts.rs")),
        ("volume", include_str!("volume.rs")),
    ];
    let page = include_str!("../../../docs/containers.md");
    let mut named = 0;
    for word in page.split('`') {
        let Some((module, test)) = word.split_once("::") else { continue };
        let Some((_, source)) = sources.iter().find(|(name, _)| *name == module) else { continue };
        named += 1;
        assert!(source.contains(&format!("fn {test}(")), "the page names {word}");
    }
    assert!(named > 30, "only {named} are named");
}
