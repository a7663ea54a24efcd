// Package layout holds the house's rules as tests: who may import whom, what
// may stand at the top, and that every package says its one job.
package layout
