//! Real sockets, real processes, real races.
//!
//! What a user may expect of the life of a socket path, and the tests that hold it:
//!
//! | expectation | tests |
//! |---|---|
//! | a stale socket is replaced | `bind::stale_socket_is_replaced`, `lifecycle::killed_owner_is_succeeded` |
//! | of several starters one wins, and deletes nobody's socket | `race::two_processes_1000_times`, `race::four_threads_200_times`, `race::churn_never_has_two_owners`, `race::files_of_others_survive_a_race` |
//! | a path never leads to a socket that does not listen yet | `race::a_new_socket_listens_from_the_start` |
//! | replacing leaves no gap | `race::replacing_a_stale_socket_leaves_no_gap` |
//! | a lock file beside it, taken over from the dead | `bind::leftover_lock_file_does_not_matter`, `bind::unusable_lock_files_are_refused` |
//! | at the end the path goes if it is still ours and the lock is held | `lifecycle::drop_removes_only_its_own_socket`, `lifecycle::drop_leaves_a_file_that_took_the_place`, `lifecycle::drop_after_the_socket_was_removed`, `lifecycle::drop_without_the_lock_removes_nothing`, `lifecycle::drop_after_the_directory_was_moved` |
//! | whatever moment it is killed at, the next one starts | `lifecycle::killed_at_any_moment_leaves_nothing_in_the_way`, `bind::temporary_socket_of_a_killed_starter_is_removed` |
//! | what is no socket is left alone | `bind::what_is_no_socket_is_refused_and_untouched` |
//! | looking whether a server lives is no connection to it | `bind::live_server_without_lock_is_left_alone`, `bind::live_sockets_of_other_kinds_are_left_alone`, `connect::full_backlog` |
//! | mode and owner are right before anybody can connect | `permissions::no_window_for_those_who_may_not_connect`, `permissions::never_visible_with_a_wider_mode` |
//! | the mode is exact, whatever the umask; 0600 unless asked for | `permissions::mode_is_exact_whatever_the_umask`, `permissions::default_mode_is_0600` |
//! | umask and working directory are not touched | `permissions::umask_and_working_directory_stay` |
//! | no directory in which anyone may replace the socket | `bind::unsafe_directory_is_refused_unless_allowed` |
//! | paths beyond 107 bytes, for binding and connecting | `paths::lengths_from_100_to_300`, `addresses::paths_of_all_lengths_for_each_kind` |
//! | errors have path, limit and length | `paths::names_beyond_the_limits`, `addresses::abstract_names_beyond_the_limit` |
//! | abstract names are exact, and only used when asked for | `addresses::abstract_names_are_bytes`, `addresses::trailing_nul_makes_another_name`, `address::tests::parses_and_prints` |
//! | names chosen by the kernel | `addresses::the_kernel_chooses_a_name` |
//! | passed sockets: for this process, once, close-on-exec, of the right kind, paths left alone | `activation::*`, `adopt::*` |
//! | file systems that are full or read-only | `environment::*` |

mod activation;
mod addresses;
mod adopt;
mod bind;
mod child;
mod connect;
mod credentials;
mod environment;
mod handover;
mod lifecycle;
mod paths;
mod permissions;
mod process;
mod race;
mod support;
