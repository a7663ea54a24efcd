package prototest

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/outguard/outguard/vsockproto"
)

// Abuse is a way for one VM to be a burden to its host and to the other VMs. Do
// goes on until ctx ends; an error says that it could not begin.
type Abuse struct {
	Name string
	Do   func(ctx context.Context, dial func() (net.Conn, error)) error
}

// Abuses lists one that floods, one that sends a byte a second, one that reads
// nothing, and one that holds a thousand connections.
func Abuses() []Abuse {
	return []Abuse{{"flooder", flood}, {"dripper", drip}, {"deaf", readNothing}, {"crowd", openMany}}
}

// flood sends as fast as it is let.
func flood(ctx context.Context, dial func() (net.Conn, error)) error {
	conn, err := dial()
	if err != nil {
		return err
	}
	var batch []*vsockproto.Event
	for i := range 200 {
		e := Sample(vsockproto.FileOpen)
		e.Path = text(fmt.Sprintf("/srv/%d", i))
		batch = append(batch, e)
	}
	a := NewAgent(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for ctx.Err() == nil {
			_ = a.Send(ctx, batch...) // its end is ctx's
		}
	})
	_ = a.Run(ctx, conn)
	return nil
}

// proven is a connection that has shown the key.
func proven(dial func() (net.Conn, error)) (net.Conn, error) {
	conn, err := dial()
	if err != nil {
		return nil, err
	}
	if err := ShakeHands(conn); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// drip sends a heartbeat a byte a second. Whatever its host makes of it is its
// host's matter.
func drip(ctx context.Context, dial func() (net.Conn, error)) error {
	conn, err := proven(dial)
	if err != nil {
		return err
	}
	defer conn.Close()
	go io.Copy(io.Discard, conn)
	for _, b := range FrameOf(vsockproto.FrameHeartbeat, 1, vsockproto.AppendHeartbeat(nil, &vsockproto.Heartbeat{})) {
		if _, err := conn.Write([]byte{b}); err != nil {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
	<-ctx.Done()
	return nil
}

// readNothing sends heartbeats and reads no answer.
func readNothing(ctx context.Context, dial func() (net.Conn, error)) error {
	conn, err := proven(dial)
	if err != nil {
		return err
	}
	defer conn.Close()
	beat := vsockproto.AppendHeartbeat(nil, &vsockproto.Heartbeat{})
	for seq := uint64(1); ctx.Err() == nil; seq++ {
		_ = conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := conn.Write(FrameOf(vsockproto.FrameHeartbeat, seq, beat)); err != nil {
			break // it is full, or closed; either way nobody reads
		}
		time.Sleep(time.Millisecond)
	}
	<-ctx.Done()
	return nil
}

// openMany opens a thousand connections, and keeps them.
func openMany(ctx context.Context, dial func() (net.Conn, error)) error {
	for range 1000 {
		conn, err := dial()
		if err != nil {
			return err
		}
		defer conn.Close()
	}
	<-ctx.Done()
	return nil
}
