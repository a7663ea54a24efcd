//go:build race

package monitor_test

// underRace: the race detector takes more memory than an engine may have.
const underRace = true
