// Package monitor wires the host's parts into one running monitor: it owns the
// configuration, the order of start and the order of shutdown. The parts do not
// know each other; they meet here through the interfaces that each declares.
package monitor
