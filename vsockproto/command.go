package vsockproto

import "fmt"

// CommandKind is what a Command asks for. Numbers are never used again.
type CommandKind uint16

// The kinds.
const (
	CommandKill     CommandKind = 1 // end a process
	CommandKillTree CommandKind = 2 // end it and all that descends from it
	CommandFreeze   CommandKind = 3 // stop every task of a cgroup and of those below it
	CommandThaw     CommandKind = 4 // let them go on
)

var commandNames = [...]string{"", "kill", "kill-tree", "freeze", "thaw"}

func (k CommandKind) valid() bool { return k >= CommandKill && k <= CommandThaw }

// ofProcess reports whether it is a process that is meant, and not a cgroup.
func (k CommandKind) ofProcess() bool { return k == CommandKill || k == CommandKillTree }

func (k CommandKind) String() string {
	if k.valid() {
		return commandNames[k]
	}
	return fmt.Sprintf("command(%d)", uint16(k))
}

// Command has the agent do something in the guest, once. A process is named by
// when it started as well, so that another one that has its pid by now is left
// alone.
type Command struct {
	Number  uint64 // names the answer; never 0
	Kind    CommandKind
	TGID    uint32 // of a process: its pid in the guest's initial namespace, else 0
	StartNs uint64 // when its leader started, as records tell it, else 0
	Cgroup  uint64 // id of a cgroup, as records tell it; 0 for a process
}

// check refuses what means nothing.
func (c *Command) check() error {
	switch {
	case c.Number == 0 || !c.Kind.valid():
		return fmt.Errorf("%s, number %d: %w", c.Kind, c.Number, ErrInvalid)
	case c.Kind.ofProcess() != (c.TGID != 0), c.Kind.ofProcess() != (c.Cgroup == 0), !c.Kind.ofProcess() && c.StartNs != 0:
		return fmt.Errorf("%s of process %d, cgroup %d: %w", c.Kind, c.TGID, c.Cgroup, ErrInvalid)
	}
	return nil
}

// AppendCommand appends c as a Command payload.
func AppendCommand(b []byte, c *Command) []byte {
	b = le.AppendUint64(b, c.Number)
	b = le.AppendUint16(b, uint16(c.Kind))
	b = append(b, 0, 0)
	b = le.AppendUint32(b, c.TGID)
	b = le.AppendUint64(b, c.StartNs)
	return le.AppendUint64(b, c.Cgroup)
}

// ParseCommand reads a Command payload.
func ParseCommand(b []byte) (Command, error) {
	r := reader{b: b}
	c := Command{Number: r.u64(), Kind: CommandKind(r.u16())}
	r.zero(2)
	c.TGID, c.StartNs, c.Cgroup = r.u32(), r.u64(), r.u64()
	err := r.end()
	if err == nil {
		err = c.check()
	}
	if err != nil {
		return Command{}, fmt.Errorf("command: %w", err)
	}
	return c, nil
}

// NoCgroup is the reason where there is no cgroup of that id.
const NoCgroup = "there is no such cgroup"

// CommandAck tells what came of a Command. It is the guest's word, and no more.
type CommandAck struct {
	Number uint64
	BootNs uint64 // CLOCK_BOOTTIME when it was done, ns
	Tasks  uint32 // processes that were sent the signal; of a cgroup 0
	Reason string // empty: it was done
}

// AppendCommandAck appends a as a CommandAck payload.
func AppendCommandAck(b []byte, a *CommandAck) []byte {
	b = le.AppendUint64(le.AppendUint64(b, a.Number), a.BootNs)
	b = le.AppendUint32(le.AppendUint32(b, a.Tasks), 0)
	return appendTail(b, TagReason, Tail{Data: []byte(a.Reason)})
}

// ParseCommandAck reads a CommandAck payload.
func ParseCommandAck(b []byte) (CommandAck, error) {
	r := reader{b: b}
	a := CommandAck{Number: r.u64(), BootNs: r.u64(), Tasks: r.u32()}
	r.zero(4)
	a.Reason = r.text(TagReason)
	if err := r.end(); err != nil {
		return CommandAck{}, fmt.Errorf("command-ack: %w", err)
	}
	return a, nil
}
