// The other end of the exchange: Go's own encoding/gob with the messages' declarations, which
// declarations.py writes into packages beside this file, and a table of them into types.go.
//
// Reads commands from standard input until it ends, one line each, and answers each on standard
// output:
//
//	decode TYPE COUNT LENGTH   LENGTH bytes follow: a stream of COUNT values
//	make TYPE COUNT SEED       makes COUNT values
//	types                      tells every type, one a line
//
// The answer to the first two is "ok TEXTS LENGTH": TEXTS bytes follow, which tell all of each value
// on a line, and a stream of LENGTH bytes, the values as this encoder writes them. What cannot be
// done is answered by "error WHAT".
package main

import (
	"bufio"
	"bytes"
	"encoding/gob"
	"fmt"
	"io"
	"math/rand"
	"os"
	"reflect"
	"sort"
	"strings"

	"exchange/filesystem"
)

func decode(typ reflect.Type, count int, stream []byte) ([]reflect.Value, error) {
	reader := bytes.NewReader(stream)
	decoder := gob.NewDecoder(reader)
	var values []reflect.Value
	for len(values) < count {
		value := reflect.New(typ)
		if err := decoder.DecodeValue(value); err != nil {
			return nil, err
		}
		values = append(values, value)
	}
	if reader.Len() != 0 {
		return nil, fmt.Errorf("%d bytes behind the last value", reader.Len())
	}
	return values, nil
}

func answer(out io.Writer, values []reflect.Value) error {
	var texts strings.Builder
	var stream bytes.Buffer
	encoder := gob.NewEncoder(&stream)
	for _, value := range values {
		tell(&texts, value.Elem())
		texts.WriteByte('\n')
		if err := encoder.EncodeValue(value); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "ok %d %d\n%s", texts.Len(), stream.Len(), texts.String())
	_, err := stream.WriteTo(out)
	return err
}

func command(line string, in io.Reader, out io.Writer) error {
	var verb, name string
	var count, number int
	if _, err := fmt.Sscanf(line, "%s %s %d %d", &verb, &name, &count, &number); err != nil {
		return err
	}
	typ, found := types[name]
	var stream []byte
	if verb == "decode" {
		stream = make([]byte, number)
		if _, err := io.ReadFull(in, stream); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("unknown type: %s", name)
	}
	switch verb {
	case "decode":
		values, err := decode(typ, count, stream)
		if err != nil {
			return err
		}
		return answer(out, values)
	case "make":
		random := rand.New(rand.NewSource(int64(number)))
		var values []reflect.Value
		for len(values) < count {
			value := reflect.New(typ)
			fill(random, value.Elem())
			values = append(values, value)
		}
		return answer(out, values)
	}
	return fmt.Errorf("unknown command: %s", verb)
}

func main() {
	gob.RegisterName("*filesystem.RegularInode", &filesystem.RegularInode{})
	gob.RegisterName("*filesystem.ComputedRegularInode", &filesystem.ComputedRegularInode{})
	gob.RegisterName("*filesystem.SymlinkInode", &filesystem.SymlinkInode{})
	gob.RegisterName("*filesystem.SpecialInode", &filesystem.SpecialInode{})
	gob.RegisterName("*filesystem.DirectoryInode", &filesystem.DirectoryInode{})
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		if line == "types\n" {
			var names []string
			for name := range types {
				names = append(names, name)
			}
			sort.Strings(names)
			fmt.Fprintln(out, strings.Join(names, " "))
		} else if err := command(line, in, out); err != nil {
			fmt.Fprintf(out, "error %s\n", strings.ReplaceAll(err.Error(), "\n", " "))
		}
		out.Flush()
	}
}
