package domain

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/color"
	imagepng "image/png"
)

// What a picture of a display may be: 8K, uncompressed.
const (
	maxPicture = 128 << 20 // bytes
	maxPixels  = 7680 * 4320
)

var errPicture = errors.New("not a picture that is known here")

// png makes of what QEMU draws, a PNG or a PPM with one byte a colour, a PNG of
// our own: its pixels are the guest's, and nothing else in it is.
func png(b []byte) ([]byte, error) {
	var img image.Image
	var err error
	if bytes.HasPrefix(b, []byte("P6")) {
		img, err = parsePPM(b)
	} else {
		img, err = parsePNG(b)
	}
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := imagepng.Encode(&out, img); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func parsePNG(b []byte) (image.Image, error) {
	c, err := imagepng.DecodeConfig(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errPicture, err)
	}
	if err := fits(c.Width, c.Height); err != nil {
		return nil, err
	}
	img, err := imagepng.Decode(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errPicture, err)
	}
	return img, nil
}

func fits(width, height int) error {
	if width <= 0 || height <= 0 || width > maxPixels/height {
		return fmt.Errorf("%w: %d by %d", errPicture, width, height)
	}
	return nil
}

// ppm is a picture of three bytes a pixel.
type ppm struct {
	width, height int
	pixels        []byte
}

func (p *ppm) ColorModel() color.Model { return color.RGBAModel }
func (p *ppm) Bounds() image.Rectangle { return image.Rect(0, 0, p.width, p.height) }
func (p *ppm) At(x, y int) color.Color {
	at := p.pixels[3*(y*p.width+x):]
	return color.RGBA{at[0], at[1], at[2], 255}
}

// parsePPM reads "P6", width, height and 255, each ended by one white space, and
// the pixels.
func parsePPM(b []byte) (image.Image, error) {
	var magic string
	var p ppm
	var most int
	r := bytes.NewReader(b)
	if n, err := fmt.Fscanf(r, "%2s\n%d %d\n%d\n", &magic, &p.width, &p.height, &most); n != 4 || err != nil || magic != "P6" || most != 255 {
		return nil, fmt.Errorf("%w: its head is %.32q", errPicture, b)
	}
	if err := fits(p.width, p.height); err != nil {
		return nil, err
	}
	p.pixels = b[len(b)-r.Len():]
	if len(p.pixels) != 3*p.width*p.height {
		return nil, fmt.Errorf("%w: %d bytes for %d by %d", errPicture, len(p.pixels), p.width, p.height)
	}
	return &p, nil
}
