package monitor

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/listen"
	"github.com/outguard/outguard/host/session"
)

// examiner looks at a VM whose agent has fallen silent: whether its kernel
// answers at its vsock, or has its port open, and what its vCPUs do meanwhile.
type examiner struct{ m *Monitor }

// examineTime bounds libvirt's part: a finding does not wait for it.
const examineTime = 1500 * time.Millisecond

var answers = map[listen.Answer]session.Answer{
	listen.Unknown: session.AnswerUnknown, listen.Lives: session.AnswerRefused,
	listen.Mute: session.AnswerNone, listen.Gone: session.AnswerGone,
}

// Examine asks for the vCPUs' time before and after the guest's answer, over a
// fifth of a second at least.
func (x examiner) Examine(ctx context.Context, vm uuid.UUID) session.Vitals {
	ctx, cancel := context.WithTimeout(ctx, examineTime)
	defer cancel()
	began := time.Now()
	before, err := x.m.libvirt.CPUTime(ctx, vm)
	v := session.Vitals{Vsock: x.probe(ctx, vm), CPU: -1}
	if err != nil {
		return v
	}
	select {
	case <-time.After(200*time.Millisecond - time.Since(began)):
	case <-ctx.Done():
		return v
	}
	if after, err := x.m.libvirt.CPUTime(ctx, vm); err == nil {
		v.CPU = (after - before).Seconds() / time.Since(began).Seconds()
	}
	return v
}

func (x examiner) probe(ctx context.Context, vm uuid.UUID) session.Answer {
	w, ok := x.m.domains.get(vm)
	switch {
	case !ok || w.Enrolment == nil:
		return session.AnswerUnknown
	case w.Enrolment.Transport == domain.Serial:
		return x.port(ctx, vm)
	case w.Enrolment.Transport == domain.VhostUser:
		return answers[x.m.doors.hybrid.Probe(ctx, vm)]
	}
	cid, err := x.m.libvirt.CID(ctx, vm)
	if err != nil {
		return session.AnswerUnknown
	}
	return answers[listen.ProbeVsock(cid)]
}

// port tells what QEMU knows of a virtio-serial port: there is nobody past the
// agent who could be asked.
func (x examiner) port(ctx context.Context, vm uuid.UUID) session.Answer {
	switch l := x.m.doors.serial; {
	case l == nil: // nobody is let in yet
		return session.AnswerUnknown
	case !l.Connected(vm):
		return session.AnswerGone
	}
	switch open, err := x.m.libvirt.PortOpen(ctx, vm); {
	case err != nil:
		return session.AnswerUnknown
	case open:
		return session.AnswerOpen
	}
	return session.AnswerClosed
}
