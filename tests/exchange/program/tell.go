package main

import (
	"fmt"
	"reflect"
	"sort"
	"strings"
	"time"
)

var timeType = reflect.TypeOf(time.Time{})

// tell writes all of a value as text. Texts and bytes are in hex, maps sorted by what their keys
// are told as, and nil lists and maps are empty ones, since gob knows no difference.
func tell(out *strings.Builder, value reflect.Value) {
	if value.Type() == timeType {
		when := value.Interface().(time.Time)
		zone := "utc"
		if when.Location() != time.UTC {
			_, seconds := when.Zone()
			zone = fmt.Sprint(seconds / 60)
		}
		fmt.Fprintf(out, "%d.%d@%s", when.Unix(), when.Nanosecond(), zone)
		return
	}
	switch value.Kind() {
	case reflect.Bool:
		fmt.Fprint(out, value.Bool())
	case reflect.Int, reflect.Int16, reflect.Int32, reflect.Int64:
		fmt.Fprint(out, value.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		fmt.Fprint(out, value.Uint())
	case reflect.String:
		fmt.Fprintf(out, "%x", value.String())
	case reflect.Pointer:
		if value.IsNil() {
			out.WriteString("nil")
			return
		}
		out.WriteByte('&')
		tell(out, value.Elem())
	case reflect.Interface:
		if value.IsNil() {
			out.WriteString("nil")
			return
		}
		out.WriteString(value.Elem().Type().String())
		tell(out, value.Elem())
	case reflect.Struct:
		out.WriteByte('(')
		for i := 0; i < value.NumField(); i++ {
			fmt.Fprintf(out, " %s=", value.Type().Field(i).Name)
			tell(out, value.Field(i))
		}
		out.WriteString(" )")
	case reflect.Array, reflect.Slice:
		if value.Type().Elem().Kind() == reflect.Uint8 {
			for i := 0; i < value.Len(); i++ {
				fmt.Fprintf(out, "%02x", value.Index(i).Uint())
			}
			return
		}
		out.WriteByte('[')
		for i := 0; i < value.Len(); i++ {
			out.WriteByte(' ')
			tell(out, value.Index(i))
		}
		out.WriteString(" ]")
	case reflect.Map:
		var entries []string
		for _, key := range value.MapKeys() {
			var entry strings.Builder
			tell(&entry, key)
			entry.WriteByte(':')
			tell(&entry, value.MapIndex(key))
			entries = append(entries, entry.String())
		}
		sort.Strings(entries)
		fmt.Fprintf(out, "{ %s }", strings.Join(entries, " "))
	default:
		panic("nothing is told of a " + value.Kind().String())
	}
}
