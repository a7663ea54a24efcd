// Package layout holds the house's rules as tests: who may import whom, what
// may stand at the top, that every package says its one job, and that
// docs/THREATS.md cites tests that are there.
package layout
