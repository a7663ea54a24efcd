package main

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// tun makes a device with two queues.
func tun() error {
	first, err := tunQueue()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		for _, h := range []string{"tun_dev_create", "tun_dev_attach_queue", "tun_dev_attach", "tun_dev_open"} {
			skip(h, err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer first.Close()
	ran("tun_dev_create", `"args":[]`)
	ran("tun_dev_attach", `"socket":{`)
	second, err := tunQueue()
	if err != nil {
		return err
	}
	defer second.Close()
	ran("tun_dev_open", `"args":[]`)
	for _, flags := range []uint16{unix.IFF_DETACH_QUEUE, unix.IFF_ATTACH_QUEUE} {
		if err := tunSet(second, unix.TUNSETQUEUE, "", flags); err != nil {
			return err
		}
	}
	ran("tun_dev_attach_queue", `"args":[]`)
	return nil
}

// tunQueue opens a queue of the device, which the first one makes.
func tunQueue() (*os.File, error) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := tunSet(f, unix.TUNSETIFF, "ogtun0", unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_MULTI_QUEUE); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func tunSet(f *os.File, cmd uint, name string, flags uint16) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	r.SetUint16(flags)
	return unix.IoctlIfreq(int(f.Fd()), cmd, r)
}
