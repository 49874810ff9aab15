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
