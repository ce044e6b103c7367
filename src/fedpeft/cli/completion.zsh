#compdef fedpeft
# Completion of fedpeft in zsh:  fedpeft completion zsh > "${fpath[1]}/_fedpeft"

_fedpeft() {
    local -a typed keys key_lines values value_lines
    local line value about
    typed=("${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}")
    for line in "${(@f)$(fedpeft completion zsh -- "${(@)typed}" 2>/dev/null)}"; do
        value=${line%%$'\t'*}
        about=${line#*$'\t'}
        case $value in
            '') ;;
            :files) compset -P '*='; _files ;;
            *=) keys+=("$value"); key_lines+=("$value${about:+  -- $about}") ;;
            *) values+=("$value"); value_lines+=("$value${about:+  -- $about}") ;;
        esac
    done
    (( $#keys )) && compadd -S '' -l -d key_lines -a keys
    (( $#values )) && compadd -l -d value_lines -a values
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _fedpeft "$@"
else
    compdef _fedpeft fedpeft
fi
